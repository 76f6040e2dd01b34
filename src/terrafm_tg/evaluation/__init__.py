"""Protocols and the report: k-NN within and across sensors, same-place retrieval, on held-out cells."""

from terrafm_tg.models.embedding import FUSED

from .held_out import BASELINE, evaluate_held_out
from .held_out_report import TRAINED, UNTRAINED, figure, table, write_report
from .knn import accuracy, balanced_accuracy, knn_predict
from .scores import TileFeatures, collect, gather, recall, score

__all__ = [
    "BASELINE",
    "FUSED",
    "TRAINED",
    "UNTRAINED",
    "TileFeatures",
    "accuracy",
    "balanced_accuracy",
    "collect",
    "evaluate_held_out",
    "figure",
    "gather",
    "knn_predict",
    "recall",
    "score",
    "table",
    "write_report",
]
