"""Benchmark datasets with one interface: GEO-Bench v1, Copernicus-Bench and Landslide4Sense."""

from .registry import TASKS, BenchSubset, open_bench, take_fraction
from .task import BenchDataset, BenchTask, MissingDatasetError

__all__ = ["TASKS", "BenchDataset", "BenchSubset", "BenchTask", "MissingDatasetError", "open_bench", "take_fraction"]
