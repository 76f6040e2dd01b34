"""Maps of a fine-tuned head: classes, probabilities, entropy, numbers, polygons and pictures of scenes."""
