"""Runs on archives of 4, 6, 9, 10 and 13 bands or one polarization, and on mixtures of them; packed, and resumed."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback
from numpy.testing import assert_array_equal

from datasets.tiny_files import optics, radar, write
from tasks.tiny_terrafm import tiny_terrafm, trainer
from terrafm_tg.cli.main import main
from terrafm_tg.datamodules import MajorTOMDataModule, MixedDataModule
from terrafm_tg.datasets import MajorTOM, MixedTiles, PackedTiles, build_index
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.datasets.source import open_tiles
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A

CONF = Path(__file__).resolve().parents[2] / "conf"
QUIET = {"workers": 0, "progress": False}
TEN = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
ARCHIVES = {
    4: {"s2l2a": ("B02", "B03", "B04", "B08")},
    6: {"s2l1c": ("B02", "B03", "B04", "B8A", "B11", "B12"), "s1rtc": ("vv",)},
    9: {"s2l2a": tuple(band for band in TEN if band != "B8A"), "s1rtc": ("vv", "vh")},
    10: {"s2l2a": TEN},
    13: {"s2l1c": (*S2L2A.bands, "B10"), "s2l2a": S2L2A.bands, "s1rtc": ("vv", "vh")},
}


def archive(world: Path, root: Path, kept: dict, cells: int = 3) -> Path:
    """A Major-TOM root with some of the cells, products and bands of another."""
    for name, bands in kept.items():
        old, new = world / FOLDERS[name], root / FOLDERS[name]
        (new / "images").mkdir(parents=True)
        metadata = pd.read_parquet(old / "metadata.parquet").head(cells)
        for url, rows in metadata.groupby("parquet_url"):
            part = pq.ParquetFile(old / "images" / Path(url).name)
            columns = ["grid_cell", "product_id", *bands]
            with pq.ParquetWriter(new / "images" / Path(url).name, part.read_row_group(0, columns).schema) as writer:
                for group in range(int(rows["parquet_row"].max()) + 1):
                    writer.write_table(part.read_row_group(group, columns))
        metadata.to_parquet(new / "metadata.parquet")
    return root


@pytest.fixture(scope="module")
def roots(small_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    return {count: archive(small_world, folder / str(count), kept) for count, kept in ARCHIVES.items()}


class Seen(Callback):
    """Keeps the losses, and checks every view: absent bands exactly at their mean, others not."""

    def __init__(self, save_at=None):
        self.losses, self.absent, self.save_at = [], set(), save_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item().hex())
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "half.ckpt")
        for group in pl_module.multicrop(batch, batch["plan"]).values():
            for name, x in group.images.items():
                held = (
                    batch[f"bands_{name}"]
                    if f"bands_{name}" in batch
                    else torch.ones(len(batch["row"]), x.shape[1]) > 0
                )
                there = held[group.idx(name) % len(held)]
                assert (x[~there] == 0.5).all()
                assert (x[there].flatten(1).std(dim=1) > 0).all()
                self.absent |= {(name, MODALITIES[name].bands[i]) for i in (~there).nonzero()[:, 1].tolist()}


def fit(data, folder: Path, steps: int = 2, **settings) -> Seen:
    seen = Seen(settings.pop("save_at", None))
    task = tiny_terrafm(depth=1, local_crops=1, global_size=32, local_size=16)
    options = {"max_steps": steps, "max_epochs": 9, "limit_val_batches": 0} | settings
    ckpt_path = options.pop("ckpt_path", None)
    run = trainer(folder, seen, **options)
    run.fit(task, data, ckpt_path=ckpt_path)
    assert run.global_step == steps
    assert all(np.isfinite(float.fromhex(loss)) for loss in seen.losses)
    return seen


SMALL = {"batch_size": 3, "num_workers": 0, "val_share": 0, "ocean_keep": 1.0}


@pytest.mark.parametrize("count", ARCHIVES)
def test_fit_on_archives_of_any_bands(count, roots, tmp_path):
    """R17, R28: finite losses, absent bands exactly at their mean."""
    seen = fit(MajorTOMDataModule(roots[count], tile_size=72, **SMALL), tmp_path)
    expected = {
        (name, band)
        for name, bands in ARCHIVES[count].items()
        for band in MODALITIES[name].bands
        if band not in bands and band.lower() not in bands
    }
    assert seen.absent == expected


@pytest.fixture(scope="module")
def mixture(roots, tmp_path_factory):
    """Four archives: one packed with radar in steps, one that holds all bands at 10 m, in larger files."""
    folder = tmp_path_factory.mktemp("mixture")
    pack(open_tiles(str(roots[9])), folder / "store", quantize_radar=True, **QUIET)
    for at in range(2):
        write(folder / f"chips/S2L2A/{at}.tif", optics(12, 150, seed=at), x=400_000 + 3000 * at)
        write(folder / f"chips/S1RTC/{at}.tif", radar(150), x=400_000 + 3000 * at)
    return {str(roots[4]): {}, str(roots[6]): {}, str(folder / "store"): {}, str(folder / "chips"): {"offset": 0}}


def test_a_mixture_of_archives(mixture, tmp_path):
    data = MixedDataModule(mixture, **SMALL | {"batch_size": 6, "by": ("archive",), "power": 1.0})
    seen = fit(data, tmp_path, steps=4)
    tiles = data.tiles
    assert tiles.tile_size == 72
    assert np.bincount(tiles.table["archive"]).tolist() == [12, 12, 12, 8]  # two files of 2 x 2 tiles
    assert {band for name, band in seen.absent if name == "s1rtc"} == {"VH"}
    assert ("s2l2a", "B8A") in seen.absent
    assert data.state_dict()["roots"] == mixture
    drawn = tiles.table["archive"].to_numpy()[data.sampler.global_rows()]
    assert np.ptp(np.bincount(drawn)) <= 1  # as often from each


def test_tiles_of_a_mixture_are_those_of_their_archives(mixture):
    sources = [open_tiles(root, **settings) for root, settings in mixture.items()]
    tiles = MixedTiles(sources)
    chips = sources[3]
    for row in range(len(tiles)):
        sample = tiles[tiles.tile_slice(row)]
        number, own = (int(tiles.table[name].iat[row]) for name in ("archive", "_row"))
        expected = sources[number][sources[number].tile_slice(own)]
        assert tiles.name(row) == f"{sources[number].root}/{sources[number].name(own)}"
        top, left = (int(tiles.table[name].iat[row]) for name in ("_top", "_left"))
        step = torch.tensor([10.0 * left, -10.0 * top], dtype=torch.float64)
        assert torch.equal(sample["transform"][[2, 5]], expected["transform"][[2, 5]] + step)
        for key in (key for key in sample if key.startswith("image_")):
            image, whole = sample[key], expected[key]
            scale = whole.shape[-1] / (144 + 6 if sources[number] is chips else 72)
            if scale == 1 and key.endswith(("20m", "60m")):  # all bands at 10 m
                part = whole[:, top : top + 72, left : left + 72].double()
                factor = int(key[-3]) * 1
                mean = torch.nn.functional.avg_pool2d(part, factor)
                assert torch.equal(image, mean.round().to(torch.uint16))
            elif whole.dtype == torch.int16:
                decibels = 10 * image.log10()
                torch.testing.assert_close(decibels, whole.float() / 100, atol=1e-3, rtol=0)
            else:
                assert torch.equal(image, whole[:, top : top + image.shape[1], left : left + image.shape[2]])


def test_a_run_on_a_mixture_resumes_bit_for_bit(mixture, tmp_path):
    def data():
        return MixedDataModule(mixture, **SMALL | {"epoch_length": 12})

    whole = fit(data(), tmp_path, steps=6, save_at=3)
    rest = fit(data(), tmp_path, steps=6, ckpt_path=tmp_path / "half.ckpt")
    assert len(whole.losses) == 6
    assert rest.losses == whole.losses[3:]


def test_workers_and_their_ring_give_the_same_batches(mixture, tmp_path):
    losses = [fit(MixedDataModule(mixture, **SMALL | {"num_workers": n}), tmp_path).losses for n in (0, 1)]
    assert losses[0] == losses[1]


def test_what_is_no_archive_or_setting_is_one_sentence(roots, tmp_path):
    for given, message in (
        ({str(tmp_path / "none"): {}}, "none is no folder"),
        ({str(roots[4]): {"unit": "dB"}}, "`unit` is no setting for .*, which holds MajorTOM"),
        ({str(roots[4]): {}}, "No tile is as large as 78 pixels"),
    ):
        with pytest.raises(TerraFMError, match=message):
            MixedDataModule(given, tile_size=78 if "78" in message else None).make_dataset()
    with pytest.raises(TerraFMError, match="roots"):
        MixedDataModule(7)


def test_the_overlay_of_a_mixture(roots, tmp_path):
    """By the command, with two roots on its line."""
    options = {
        "model.depth": 1, "model.crops.global_size": 32, "model.crops.local_size": 16, "model.crops.local_crops": 1,
        "model.head.prototypes": 64, "model.center.alpha": 1, "model.schedule.warmup_epochs": 0, "data.batch_size": 2,
        "data.num_workers": 0, "data.val_share": 0, "trainer.max_steps": 1, "trainer.limit_val_batches": 0,
        "trainer.default_root_dir": tmp_path, "trainer.logger.init_args.save_dir": tmp_path,
        "data.roots": f"[{roots[4]},{roots[13]}]", "trainer.log_every_n_steps": 1,
    }  # fmt: skip
    stack = ("pretrain", "size/tiny", "data/mixed", "hardware/cpu")
    main(["fit", *(f"--config={CONF / name}.yaml" for name in stack), *(f"--{key}={x}" for key, x in options.items())])
    losses = pd.read_csv(next(tmp_path.rglob("metrics.csv")))["train/loss"].dropna()
    assert np.isfinite(losses).all()


def same_samples(first, second):
    assert len(first) == len(second)
    for row in range(len(first)):
        one, other = first[first.tile_slice(row)], second[second.tile_slice(row)]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("count", [4, 6])
def test_a_store_packs_and_reads_any_bands(count, roots, tmp_path):
    tiles = open_tiles(str(roots[count]), harmonize=False)
    pack(tiles, tmp_path / "store", **QUIET)
    packed = PackedTiles(tmp_path / "store", native=True, harmonize=False)
    same_samples(packed, tiles)
    sizes = packed.table.filter(regex="^bytes_s2").sum().sum()
    raw = len(tiles) * 72 * 72 * 2 * len(ARCHIVES[count])
    assert sizes < 5 * raw  # absent planes take next to nothing
    table = build_index(roots[count], out=tmp_path / "index.parquet", **QUIET)
    assert table.filter(regex="^bands_").notna().all(axis=None)


def test_a_tile_that_gains_a_band_is_packed_again_and_others_are_not(roots, small_world, tmp_path):
    root = archive(small_world, tmp_path / "root", ARCHIVES[4])
    pack(open_tiles(str(root)), tmp_path / "store", **QUIET)
    table = MajorTOM(root, native=True, tile_size=72).table
    assert pack(open_tiles(str(root)), tmp_path / "store", **QUIET).counts.loc["s2l2a", "tiles"] == 0
    changed = table["bands_s2l2a"].astype(object)
    changed.iloc[:4] = "B02 B03 B04"
    fewer = MajorTOM(root, native=True, tile_size=72, index=table.assign(bands_s2l2a=pd.Categorical(changed)))
    report = pack(fewer, tmp_path / "store", **QUIET)
    assert report.counts.loc["s2l2a", ["tiles", "before"]].tolist() == [4, len(table) - 4]
    held = PackedTiles(tmp_path / "store", native=True)
    assert not held[held.tile_slice(0)]["bands_s2l2a"][S2L2A.bands.index("B08")]
    assert (held._read(0, S2L2A)[10][3] == 0).all()


def test_a_store_of_full_tiles_is_the_same_with_and_without_the_column(roots, tmp_path):
    for name in ("without", "saying"):
        tiles = MajorTOM(roots[13], native=True, tile_size=72, harmonize=False)
        if name == "saying":
            tiles.index = tiles.table.assign(bands_s2l2a=pd.Categorical([None] * len(tiles)))
        pack(tiles, tmp_path / name, **QUIET)
    shards = [sorted((tmp_path / name).rglob("*.arrow")) for name in ("without", "saying")]
    assert [p.name for p in shards[0]] == [p.name for p in shards[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*shards, strict=True))


def test_archives_packed_into_one_store(roots, tmp_path):
    """One of 4 native bands, then files that hold all bands at 10 m: tiles of one size and shape."""
    pack(open_tiles(str(roots[4])), tmp_path / "store", **QUIET)
    write(tmp_path / "chips/S2L2A/a.tif", optics(12, 72))
    chips = open_tiles(str(tmp_path / "chips"), tile_size=72, offset=0)
    pack(chips, tmp_path / "store", **QUIET)
    store = PackedTiles(tmp_path / "store", native=True)
    assert len(store) == 13
    shapes = {tuple(store[store.tile_slice(row)]["image_s2l2a_20m"].shape) for row in range(13)}
    assert shapes == {(6, 36, 36)}
    losses = fit(MixedDataModule([str(tmp_path / "store")], **SMALL), tmp_path).losses
    assert len(losses) == 2


def test_radar_that_holds_nodata_in_one_polarization(small_world, tmp_path):
    """R28: VH is there, and empty: no tile is damaged, and views have it at its mean."""
    root = archive(small_world, tmp_path / "root", {"s1rtc": ("vv", "vh")}, 2)
    tiles = MajorTOM(root, native=True, tile_size=72)
    read = tiles._read

    def without_vh(row, modality):
        groups = read(row, modality)
        groups[10][1] = -32768
        return groups

    tiles._read = without_vh
    sample = tiles[tiles.tile_slice(0)]
    batch = {key: x[None] for key, x in sample.items()} | {"sample_idx_s1rtc": torch.tensor([0])}
    whole = tiny_terrafm().multicrop.whole(batch, 32).images["s1rtc"]
    assert (whole[:, 1] == 0.5).all()
    assert whole[:, 0].std() > 0
    assert_array_equal(sample["image_s1rtc_10m"][0], read(0, S1RTC)[10][0])
    shutil.rmtree(root)


def test_tiles_smaller_than_their_crops_are_said_in_a_run(tmp_path):
    """R25: what is interpolated is said."""
    for at in range(3):
        write(tmp_path / f"chips/S2L2A/{at}.tif", optics(12, 6, seed=at), x=400_000 + 3000 * at)
    data = MixedDataModule({str(tmp_path / "chips"): {"offset": 0}}, tile_size=6, **SMALL)
    run = trainer(tmp_path, max_steps=1, max_epochs=1, limit_val_batches=0)
    with pytest.warns(UserWarning, match="Tiles are 6 pixels across: global crops of 32 pixels enlarge them 5.3 times"):
        run.fit(tiny_terrafm(depth=1, local_crops=1, global_size=32, local_size=16), data)
    assert run.global_step == 1
