"""Fixtures shared by the suite: the simulated world, the published numbers, real satellite tiles."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from filelock import FileLock

from data.published_weights import recipe

gc.disable()  # while modules are imported, of which nothing is garbage
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish() -> None:
    """Leave the modules, which stay, out of each garbage collection to come: they are most of the objects."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter end as ever."""
    gc.unfreeze()


def _present(path: Path, what: str) -> Path:
    if not path.exists():
        pytest.skip(f"{what} not found at {path}")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real satellite tiles: `../shared/real`, or where TERRAFM_REAL_DATA points."""
    return _present(Path(os.environ.get("TERRAFM_REAL_DATA", SHARED / "real")), "Real satellite tiles")


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder with the published encoder's shapes and outputs: `../shared/parity`, or where TERRAFM_PARITY points."""
    return _present(Path(os.environ.get("TERRAFM_PARITY", SHARED / "parity")), "The published encoder's outputs")


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GEO-Bench's twelve datasets, Copernicus-Bench's nine and Landslide4Sense: 8 to 20 samples of 32 px."""
    from data.geobench.data import KINDS, make_geobench
    from data.labelled import WRITERS, make_copernicus, make_landslide

    root = tmp_path_factory.mktemp("benchmarks")
    for name in KINDS:
        make_geobench(root, name, 12, 6, 8, classes=3)
    for name in WRITERS:
        make_copernicus(root, name, 8)
    return make_landslide(root, 8)


@pytest.fixture(scope="session")
def published_file(parity: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`TerraFM-B.pth` in the published layout, with the parity README's numbers (450 MB, gone after the session)."""
    shapes = json.loads((parity / "state_dict_shapes.json").read_text())["terrafm_base"]
    path = tmp_path_factory.mktemp("published") / "TerraFM-B.pth"
    torch.save(recipe(shapes), path)
    yield path
    path.unlink()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """An empty folder as the torch hub cache's checkpoints."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    torch.hub.set_dir(before)


@pytest.fixture(scope="module")
def dask_from_server() -> Iterator[None]:
    """Dask's worker processes are forked from a server that has imported everything, not started one by one."""
    from processes import serve_dask

    with serve_dask():
        yield


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a simulated world of 40 cells of 144 px (160 tiles of 72 px), indexed, made once for all workers."""
    from terrafm_tg.simulation import SimulatedWorld

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "world"
    with FileLock(f"{root}.lock"):
        SimulatedWorld(root, cells=40, cell_size=144, seed=0)
    return root


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Makes a native batch, as `collate_tiles` does, of random tiles.

    They stand at ``positions`` of the epoch, and those in ``without_s1`` lack radar.
    The pixels depend on the position alone.
    """

    from terrafm_tg.modalities import MODALITIES, S1RTC

    def make(positions: list[int], tile: int = 48, without_s1: tuple[int, ...] = (), epoch: int = 0):
        samples = {p: torch.Generator().manual_seed(p) for p in positions}
        batch = {"position": torch.tensor(positions), "epoch": torch.full((len(positions),), epoch)}
        for modality in MODALITIES.values():
            having = [p for p in positions if modality != S1RTC or p not in without_s1]
            batch[f"sample_idx_{modality.name}"] = torch.tensor([positions.index(p) for p in having], dtype=torch.int64)
            for resolution, bands in modality.native.items():
                shape = (len(bands), tile * 10 // resolution, tile * 10 // resolution)
                if having:
                    tiles = torch.stack([torch.rand(shape, generator=samples[p]) for p in having])
                    key = modality.native_key(resolution)
                    batch[key] = tiles + 1e-3 if modality == S1RTC else (1 + 9000 * tiles).to(torch.uint16)
        return batch

    return make


# Imported here, so that its log handler does not keep the captured stream of whichever test imports it first.
pl.seed_everything(0, verbose=False)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """One thread per test process: the matrices are small and the suite runs one process per core."""
    torch.set_num_threads(1)
