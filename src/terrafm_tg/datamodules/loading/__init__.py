"""Loading of tiles: ring of shared memory, faults, cache, resume, split."""
