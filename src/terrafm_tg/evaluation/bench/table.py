"""The table of results: one row per score, with every setting beside it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.utils.files import atomic_write

from .unit import Unit, read_rows

#: Columns of the table in order.
#: ``score`` is in percent. ``settings`` (of the protocol, and what it chose), ``versions`` and ``confusion``
#: (``[true][predicted]``) are JSON. ``stem`` and ``weights`` are empty for the dataset's own level and random weights.
SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("dataset", pa.string()),
        ("protocol", pa.string()),
        ("model", pa.string()),
        ("name", pa.string()),
        ("weights", pa.string()),
        ("stem", pa.string()),
        ("sensors", pa.string()),
        ("pooling", pa.string()),
        ("size", pa.int64()),
        ("normalization", pa.string()),
        ("bands", pa.string()),
        ("train_fraction", pa.float64()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("average", pa.string()),
        ("headline", pa.bool_()),
        ("score", pa.float64()),
        ("n_train", pa.int64()),
        ("n_test", pa.int64()),
        ("seconds", pa.float64()),
        ("settings", pa.string()),
        ("per_class", pa.list_(pa.float64())),
        ("confusion", pa.string()),
        ("versions", pa.string()),
        ("machine", pa.string()),
        ("model_id", pa.string()),
        ("data_id", pa.string()),
        ("published", pa.bool_()),
    ]
)
_ORDER = [
    name for name in SCHEMA.names if name not in ("seconds", "score", "per_class", "confusion", "versions")
]


def collect(out: Path, planned: Sequence[Unit]) -> pd.DataFrame:
    """The results of a folder, of this run and of others before it.

    Args:
        out: Folder of the results.
        planned: Units of this run: what is there of an older state of their files is left out.
    """
    plan = {unit.key: unit.stamp for unit in planned}
    rows = []
    for path in sorted((out / "units").glob("*.json")):
        stored = read_rows(path)
        if stored is not None and plan.get(path.stem, stored["stamp"]) == stored["stamp"]:
            rows += stored["rows"]
    frame = pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()
    return frame.sort_values(_ORDER, kind="stable", ignore_index=True)


def write_table(frame: pd.DataFrame, out: Path) -> tuple[Path, Path]:
    """Write ``results.parquet`` and ``results.csv``, each whole; the same results give the same bytes.

    Args:
        frame: From :func:`collect`.
        out: Folder.
    """
    parquet, csv = out / "results.parquet", out / "results.csv"
    with atomic_write(parquet, sole_writer=True) as path:
        pq.write_table(pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False), path)
    flat = frame.assign(per_class=[None if x is None else json.dumps(list(x)) for x in frame["per_class"]])
    with atomic_write(csv, sole_writer=True) as path:
        flat.to_csv(path, index=False)
    return parquet, csv
