"""From scenes to embeddings and maps: windows, blending, and the products that are written."""
