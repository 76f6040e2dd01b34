from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from tiny_terrafm import trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from terrafm_tg.callbacks import PredictionWriter
from terrafm_tg.callbacks.contact_sheet import draw_contact_sheet
from terrafm_tg.modalities import MODALITIES, S2L2A
from terrafm_tg.transforms import MultiCrop
from terrafm_tg.transforms.augment import NO_CHANGE


def test_every_view_of_the_first_tiles_is_drawn(make_batch, tmp_path):
    crop = MultiCrop(global_size=32, local_size=16, local_crops=3)
    batch = make_batch([1, 2, 3], without_s1=(2,))
    plan = crop.plan(batch)
    whole, views = crop.whole(batch, 32), crop(batch, plan)
    figure = draw_contact_sheet(whole, views, plan, tiles=2)
    shown = sum(int((rows % 3 < 2).sum()) for group in (whole, *views.values()) for rows in group.sample_idx.values())
    assert sum(len(ax.images) for ax in figure.axes) == shown
    assert len(figure.axes) == 2 * 3 * (1 + 2 + 2 + 3)
    assert any(ax.lines for ax in figure.axes)
    figure.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert np.asarray(picture)[..., :3].std() > 10


def test_an_outline_is_where_the_view_was_cut(make_batch):
    crop = MultiCrop(["s2l2a"], 24, 16, 0, global_scale=(0.3, 0.3), augment=NO_CHANGE)
    batch = make_batch([5])
    plan = crop.plan(batch)
    whole_tile, *_ = draw_contact_sheet(crop.whole(batch, 24), crop(batch, plan), plan).axes
    for view in range(2):
        outline = whole_tile.lines[2 * view]  # each is followed by its dot
        top, bottom, left, right = plan["global_s2l2a_box"][view].numpy() * 24 - 0.5
        assert outline.get_xdata()[:2] == pytest.approx([left, right])
        assert outline.get_ydata()[1:3] == pytest.approx([top, bottom])


def test_real_sensors_lie_on_each_other(real_data):
    """L1C and L2A of one place correlate as they lie, and less when one of them is moved by two pixels."""
    paths = sorted((real_data / "terramesh" / "S2L2A").glob("*.tif"))
    batch = {"position": torch.arange(len(paths)), "epoch": torch.zeros(len(paths), dtype=torch.int64)}
    for name, folder in (("s2l1c", "S2L1C"), ("s2l2a", "S2L2A")):
        modality = MODALITIES[name]
        batch[f"sample_idx_{name}"] = torch.arange(len(paths))
        images = []
        for path in paths:
            with rasterio.open(real_data / "terramesh" / folder / path.name) as file:
                image = file.read()[:, :222, :222]
            images.append(np.delete(image, 10, axis=0) if len(image) == 13 else image)  # without B10
        for resolution, bands in modality.native.items():
            columns, step = modality.band_indices(bands), resolution // 10
            group = np.stack(images)[:, columns, ::step, ::step]
            batch[modality.native_key(resolution)] = torch.from_numpy(group.astype(np.uint16))
    whole = MultiCrop().whole(batch, 112)
    band = S2L2A.bands.index("B08")
    for l1c, l2a in zip(whole.images["s2l1c"][:, band], whole.images["s2l2a"][:, band], strict=True):
        there, moved = (np.corrcoef(l1c.ravel(), other.ravel())[0, 1] for other in (l2a, l2a.roll(2, 0)))
        assert there > 0.9
        assert there > moved


class Places(Dataset):
    """A row of numbers, by number or by slice as TorchGeo's geographic datasets."""

    def __getitem__(self, index: int | tuple[slice, ...]) -> Tensor:
        return torch.arange(10.0)[index if isinstance(index, int) else index[0]].sum()

    def __len__(self) -> int:
        return 10


class Double(LightningModule):
    """Predicts twice the value."""

    def predict_step(self, batch: Tensor) -> Tensor:
        return 2 * batch


@pytest.mark.parametrize("geographic", [False, True])
def test_each_batch_is_a_file(geographic: bool, tmp_path: Path) -> None:
    drawn = [(slice(i, i + 1), slice(0, 1)) if geographic else i for i in range(5)]
    data = DataLoader(Places(), batch_size=2, sampler=drawn)
    trainer(tmp_path, PredictionWriter()).predict(Double(), data, return_predictions=False)
    paths = sorted((tmp_path / "predictions").iterdir())
    assert [path.name for path in paths] == ["0_0_000000.pt", "0_0_000001.pt", "0_0_000002.pt"]
    second = torch.load(paths[1], weights_only=True)
    assert second["predictions"].tolist() == [4.0, 6.0]
    assert second["samples"] == (None if geographic else [2, 3])
