"""What a fresh process takes for an index of synthetic tiles: 60,000 here, the paper's six million in `make soak`."""

import pyarrow.parquet as pq
import pytest

from benchmarks import index
from benchmarks.synthetic_index import write_synthetic_index
from terrafm_tg.errors import TerraFMError


def measure(folder, tiles) -> dict[str, dict]:
    write_synthetic_index(folder / "index.parquet", tiles)
    stages = index.measure(folder / "index.parquet")
    assert [path.name for path in folder.iterdir()] == ["index.parquet"]
    return {stage["stage"]: stage for stage in stages}


def test_sixty_thousand_tiles(tmp_path) -> None:
    """Loading them takes little more memory than the imports: half a kilobyte a tile at most."""
    stages = measure(tmp_path, 60_000)
    assert {"load the index", "sampler", "first draw of an epoch"} < set(stages)
    assert stages["load the index"]["peak_gb"] - stages["imports"]["peak_gb"] < 0.25
    assert all(stage["processor_seconds"] > 0 for stage in stages.values())


@pytest.mark.soak
def test_six_million_tiles(tmp_path) -> None:
    stages = measure(tmp_path, 6_000_000)
    assert stages["load the index"]["peak_gb"] < 3
    assert max(stage["peak_gb"] for stage in stages.values()) < 4


def test_columns_are_those_of_a_real_index(small_world, tmp_path) -> None:
    write_synthetic_index(tmp_path / "index.parquet", 40)
    ours, real = (pq.read_schema(folder / "index.parquet") for folder in (tmp_path, small_world))
    assert {field.name: field.type for field in ours} == {field.name: field.type for field in real}


def test_impossible_numbers(tmp_path) -> None:
    with pytest.raises(TerraFMError, match=r"none.parquet cannot be read .* make it again with `terrafm index`"):
        index.measure(tmp_path / "none.parquet")
    with pytest.raises(TerraFMError, match="`tiles` is 6: give a multiple of 4"):
        write_synthetic_index(tmp_path / "index.parquet", 6)
