"""Atomic files, remote bytes, parallel work, keyed random numbers, progress, devices."""
