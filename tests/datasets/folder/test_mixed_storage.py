"""Folders of images whose bands of 20 and 60 m are stored at their own size and of others that are stored at 10 m."""

from dataclasses import replace

import numpy as np
import pytest

from datasets.scenes import providers as p
from terrafm_tg.datamodules import SentinelFolderDataModule
from terrafm_tg.datasets import PackedTiles, SentinelFolder
from terrafm_tg.datasets.store.pack import pack

STEP = 720  # meters between images


def image(number: int, **said) -> p.Image:
    return p.optical(72, 1000, seed=number, x=499_980 + STEP * number, tile=f"33UX{'ABCD'[number]}", **said)


def coarse(number: int) -> p.Image:
    """All bands at 60 m, as a stack may have them."""
    fine = image(number)
    return replace(fine, bands={b: x[:: len(x) // 12, :: len(x) // 12] for b, x in fine.bands.items()})


def safe(root):
    p.safe(root, image(0))
    return {0: p.native_groups(image(0), "s2l2a")}


def stack(root):
    """Repeated at 10 m, so that the mean over a band's own pixel is that pixel."""
    p.earth_engine(root, image(1))
    return {1: p.native_groups(image(1), "s2l2a")}


def sixty(root):
    p.stack(root, coarse(2), name=coarse(2).product, res=60)
    return {2: {60: p.native_groups(coarse(2), "s2l2a")[60]}}


def four_bands(root):
    some = p.without(image(3), *set(image(3).bands) - {"B02", "B03", "B04", "B08"})
    p.stack(root, some, names=True)
    return {3: {10: p.native_groups(image(3), "s2l2a")[10]}}


KINDS = [(safe, stack), (sixty, stack), (safe, sixty, stack), (safe, four_bands, stack)]


@pytest.mark.filterwarnings("ignore:1 image has pixels of 60 m")
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(kind.__name__ for kind in kinds))
def test_one_batch_holds_images_that_are_stored_differently(kinds, tmp_path):
    """Each band at its own resolution and of its own pixels; the same from a store."""
    expected = {number: groups for kind in kinds for number, groups in kind(tmp_path / "images").items()}
    count = len(kinds) * 4
    data = SentinelFolderDataModule(tmp_path / "images", tile_size=36, batch_size=count, num_workers=0, val_share=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    sides = {resolution: 360 // resolution for resolution in (10, 20, 60)}
    for resolution, side in sides.items():
        assert batch[f"image_s2l2a_{resolution}m"].shape[-2:] == (side, side)
        assert len(batch[f"image_s2l2a_{resolution}m"]) == count
    for place, transform in enumerate(batch["transform"]):
        number, left = divmod(round(transform[2].item() - 499_980), STEP)
        top = round(5_400_000 - transform[5].item())
        for resolution, whole in expected[number].items():
            rows, columns = (
                slice(start // resolution, start // resolution + sides[resolution]) for start in (top, left)
            )
            np.testing.assert_array_equal(
                batch[f"image_s2l2a_{resolution}m"][place], whole[:, rows, columns].astype(int) - 1000
            )
    folder = SentinelFolder(tmp_path / "images", native=True, tile_size=36)
    report = pack(folder, tmp_path / "store", workers=0, progress=False)
    assert report.tiles == count
    packed = PackedTiles(tmp_path / "store", native=True)
    for row in range(count):
        one, other = (tiles[tiles.tile_slice(row)] for tiles in (folder, packed))
        for key in (key for key in one if key.startswith("image_")):
            apart = (one[key].int() - other[key].int()).abs().max()
            assert apart <= (sixty in kinds)  # enlarged with the offset in or off, and rounded


@pytest.mark.parametrize(("write", "side"), [(p.safe, 12), (p.earth_engine, 72)])
def test_images_stored_alike_stay_as_they_are_stored(write, side, tmp_path):
    for number in range(2):
        write(tmp_path, image(number))
    tiles = SentinelFolder(tmp_path, native=True, tile_size=72)
    assert tiles[tiles.tile_slice(1)]["image_s2l2a_60m"].shape[-1] == side
