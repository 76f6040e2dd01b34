"""What the benchmark of containers compares: the store's own form beside other ways to keep the same tiles."""
