"""Puts this folder's helpers (`tiny_files`, `range_server`) on the path of the tests in the folders below."""
