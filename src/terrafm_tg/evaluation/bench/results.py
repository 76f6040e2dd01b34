"""The table of results: one row per score, with every setting."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.utils.files import atomic_write

from .units import WorkUnit, read_rows

_COLUMNS = (
    "benchmark", "dataset", "protocol", "model", "name", "weights", "stem", "sensors", "pooling", "size",
    "normalization", "bands", "train_fraction", "seed", "metric", "average", "headline", "score", "n_train", "n_test",
    "seconds", "settings", "per_class", "confusion", "versions", "machine", "model_id", "data_id", "published",
)  # fmt: skip
_TYPES = dict.fromkeys(("size", "seed", "n_train", "n_test"), pa.int64())
_TYPES |= dict.fromkeys(("train_fraction", "score", "seconds"), pa.float64())
_TYPES |= {"headline": pa.bool_(), "published": pa.bool_(), "per_class": pa.list_(pa.float64())}
#: Columns of the table in order.
#: ``score`` is in percent. ``settings`` (given to the protocol, and chosen by it), ``versions`` and ``confusion``
#: (``[true][predicted]``) are JSON. ``stem`` and ``weights`` are empty for the dataset's own level and random weights.
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in _COLUMNS])
_ORDER = [x for x in _COLUMNS if x not in ("seconds", "score", "per_class", "confusion", "versions")]


def collect_results(out: Path, planned: Sequence[WorkUnit]) -> pd.DataFrame:
    """Returns the results of a folder, of this run and of others before it.

    Args:
        out: Folder of the results.
        planned: Units of this run: results of an older state of their files are left out.
    """
    plan = {unit.key: unit.stamp for unit in planned}
    rows = []
    for path in sorted((out / "units").glob("*.json")):
        stored = read_rows(path)
        if stored is not None and plan.get(path.stem, stored["stamp"]) == stored["stamp"]:
            rows += stored["rows"]
    frame = pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()
    return frame.sort_values(_ORDER, kind="stable", ignore_index=True)


def write_results(frame: pd.DataFrame, out: Path) -> None:
    """Writes ``results.parquet`` and ``results.csv``, each whole; the same results give the same bytes.

    Args:
        frame: From :func:`collect_results`.
        out: Folder.
    """
    with atomic_write(out / "results.parquet", sole_writer=True) as path:
        pq.write_table(pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False), path)
    flat = frame.assign(per_class=[None if x is None else json.dumps(list(x)) for x in frame["per_class"]])
    with atomic_write(out / "results.csv", sole_writer=True) as path:
        flat.to_csv(path, index=False)
