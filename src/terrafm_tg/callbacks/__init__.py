"""Callbacks and checkpoint plugin: what watches a run, keeps it and sums it up."""

from terrafm_tg.tasks.checkpoint_io import AtomicCheckpointIO

from .bench_knn import BenchKNN
from .collapse import CollapseMonitor
from .contact_sheet import ContactSheet
from .held_out import HeldOutReport
from .knn import KNNMonitor
from .places import PlacesReport
from .prediction_writer import PredictionWriter
from .progress_lines import ProgressLines
from .safe_stop import SafeStop
from .summary import RunSummary

__all__ = [
    "AtomicCheckpointIO",
    "BenchKNN",
    "CollapseMonitor",
    "ContactSheet",
    "HeldOutReport",
    "KNNMonitor",
    "PlacesReport",
    "PredictionWriter",
    "ProgressLines",
    "RunSummary",
    "SafeStop",
]
