"""Tables of embeddings: a vector per tile, point or polygon."""
