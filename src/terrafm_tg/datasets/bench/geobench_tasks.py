"""The twelve datasets of GEO-Bench v1."""

from .task import BenchTask

#: Six classification and six segmentation datasets.
GEO_BENCH: tuple[BenchTask, ...] = ()
