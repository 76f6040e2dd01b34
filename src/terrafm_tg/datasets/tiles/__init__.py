"""The contract of every tile dataset: index, slices, pixels."""
