"""Major-TOM: its grid, its files, and own scenes cut into its cells."""
