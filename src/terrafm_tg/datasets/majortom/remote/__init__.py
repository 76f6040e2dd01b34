"""Major-TOM at its source: what is chosen, fetched by range requests, and kept on disk."""
