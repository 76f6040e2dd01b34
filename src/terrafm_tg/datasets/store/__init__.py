"""The packed store: tiles compressed for speed, with a checksum each."""
