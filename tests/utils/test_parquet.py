"""Tables of strangers: what they take in memory is bounded, whatever they declare, repeat or contradict."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.tiny_files import product, write_major_tom
from refusals import refused
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.majortom.part_files import PartFiles
from terrafm_tg.utils.parquet import CheckedFile, read_schema, read_table

TEXT = "x" * (1 << 20)
AGAIN = pa.array([TEXT]).take(pa.array([0] * 400))
BOMBS = {
    "a text that repeats": ({"a": AGAIN}, {}, "holds 419 MB of texts, expected 67"),
    "the same of bytes": ({"a": AGAIN.cast(pa.binary())}, {}, "holds 419 MB of texts"),
    "lists of texts": ({"a": [[TEXT] * 99]}, {}, "its column a.list.element holds lists of texts"),
    "texts one by one": ({"a": [TEXT + str(i) for i in range(99)]}, {"use_dictionary": False}, "declares 104 MB of"),
    "of a fixed length": ({"a": pa.array([b"x" * (1 << 20)] * 99, pa.binary(1 << 20))}, {}, "declares 1.. MB of"),
    "numbers that repeat": ({"a": np.zeros(9_000_000)}, {}, "declares 72 MB of values, expected 67 at most"),
    "beginnings that repeat": (
        {"a": [TEXT + str(i) for i in range(9)]},
        {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}},
        "in encoding 7",
    ),
}  # fmt: skip


def peak():
    """The most memory that this process had, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_table_never_becomes_a_large_one(kind, tmp_path):
    columns, options, said = BOMBS[kind]
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", compression="zstd", write_statistics=False, **options)
    assert (tmp_path / "x.parquet").stat().st_size < 250_000
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present memory again
    before = peak()
    with pytest.raises(ValueError, match=said):
        read_table(tmp_path / "x.parquet", ["a"])
    assert peak() - before < 1 << 26


kinds = st.sampled_from(["text", "category", "bytes", "number", "flag", "time", "struct", "numbers"])


@given(
    st.lists(kinds, min_size=1, max_size=4),
    st.integers(0, 50),
    st.integers(0, 2**32),
    st.fixed_dictionaries(
        {
            "row_group_size": st.integers(1, 60),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "use_dictionary": st.booleans(),
            "compression": st.sampled_from(["snappy", "zstd", "none"]),
        }
    ),
)
@settings(max_examples=40, deadline=None)
def test_an_ordinary_table_is_pyarrows(tmp_path_factory, names, rows, seed, options):
    rng = np.random.default_rng(seed)
    words = np.array(["a", "é☃", "", None, "of some length"], dtype=object)[rng.integers(0, 5, rows)]
    made = {
        "text": pa.array(words, pa.string()),
        "category": pa.array(words, pa.string()).dictionary_encode(),
        "bytes": pa.array([None if word is None else word.encode() for word in words], pa.binary()),
        "number": pa.array(rng.random(rows), mask=rng.random(rows) < 0.2),
        "flag": pa.array(rng.random(rows) < 0.5),
        "time": pa.array(rng.integers(0, 2**50, rows), pa.timestamp("us")),
        "struct": pa.array([{"x": float(i)} for i in range(rows)], pa.struct({"x": pa.float64()})),
        "numbers": pa.array([[1.0] * (i % 3) for i in range(rows)], pa.list_(pa.float64())),
    }
    table = pa.table({f"{i} {name}": made[name] for i, name in enumerate(names)}, metadata={"geo": "{}"})
    path = tmp_path_factory.mktemp("table") / "x.parquet"
    pq.write_table(table, path, **options)
    assert read_table(path).equals(pq.read_table(path), check_metadata=True)
    assert read_table(path, table.column_names[:1]).equals(pq.read_table(path, columns=table.column_names[:1]))
    assert read_schema(path) == pq.read_schema(path)
    with pytest.raises(ValueError, match="it has not one column other"):
        read_table(path, ["other"])


def lying(path, size, says):
    """Makes the header of a page ask for other bytes than the footer says; both need three bytes to be said."""
    content, head = path.read_bytes(), b"\x15\x00\x15"  # of a data page: its kind, and its size
    old, new = (head + bytes([2 * n & 127 | 128, 2 * n >> 7 & 127 | 128, 2 * n >> 14]) for n in (size, says))
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_pages_are_no_more_than_their_footer_says(tmp_path):
    path = tmp_path / "part.parquet"
    band = np.random.default_rng(0).integers(0, 9, 300_000, np.uint8).tobytes()
    pq.write_table(pa.table({"B02": [band], "B03": [b"x"]}), path, use_dictionary=False, compression="zstd")
    assert PartFiles().read(str(path), 0, ["B02", "B03"]) == {"B02": band, "B03": b"x"}
    lying(path, 300_004 + 6, 1_000_000)
    with pytest.raises(OSError, match=r"the pages of B02 need 1,000,000 bytes for 1 values, expected 300,0\d\d at"):
        PartFiles().read(str(path), 0, ["B02"])
    assert PartFiles().read(str(path), 0, ["B03"]) == {"B03": b"x"}
    with pytest.raises(ValueError, match="the pages of B02 need"):
        read_table(path)


def test_a_footer_of_many_nothings_is_not_read(tmp_path):
    (tmp_path / "long").write_bytes(b"PAR1" + bytes(5 << 20) + (5 << 20).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match="its footer has 5,242,880 bytes, expected 4,194,304 at most"):
        CheckedFile(tmp_path / "long")


@pytest.mark.parametrize("kind", ["a text that repeats", "texts one by one", "beginnings that repeat"])
def test_a_metadata_table_that_declares_much_is_one_sentence(kind, tmp_path):
    root = write_major_tom(tmp_path, {"s2l2a": [product("s2l2a", "536U_101R")]})
    path = root / "Core-S2L2A/metadata.parquet"
    table, (columns, options, _) = pd.read_parquet(path), BOMBS[kind]
    repeated = pa.Table.from_pandas(pd.concat([table] * len(columns["a"]), ignore_index=True))
    repeated = repeated.set_column(repeated.column_names.index("product_id"), "product_id", pa.array(columns["a"]))
    options = {k: {"product_id": "DELTA_BYTE_ARRAY"} if k == "column_encoding" else v for k, v in options.items()}
    pq.write_table(repeated, path, compression="zstd", write_statistics=False, **options)
    said = r"metadata\.parquet cannot be read \(.*(holds|declares|encoding 7).*: download it again"
    with refused(match=said) as error:
        MajorTOM(root, tile_size=12)
    assert "\n" not in str(error.value)
