"""From the file to the stem: every band of GEO-Bench reaches the kernel column of that name, and no other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from data.geobench.data import KINDS, LABELLED_BANDS, TRUE_BANDS, make_geobench
from terrafm_tg.datasets.bench import open_bench
from terrafm_tg.evaluation.encoders import ModelSpec, load_encoder
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models import build_encoder

SIZE = 32
#: Channels of the files by band, told by geobench's documentation, and the unit of the marks.
FILES: dict[tuple[str, str], dict[str, dict[str, int]]] = {
    ("m-eurosat", "corrected"): {"s2l1c": {band: i for i, band in enumerate(TRUE_BANDS["m-eurosat"])}},
    ("m-eurosat", "labelled"): {"s2l1c": {band: i for i, band in enumerate(LABELLED_BANDS)}},
    ("m-brick-kiln", "corrected"): {
        "s2l2a": {band: i for i, band in enumerate(TRUE_BANDS["m-brick-kiln"][:10])}
    },
    ("m-brick-kiln", "labelled"): {"s2l2a": {band: i for i, band in enumerate(LABELLED_BANDS)}},
    ("m-so2sat", "corrected"): {
        "s1rtc": {"VH": 4, "VV": 5},
        "s2l1c": {
            band: 8 + i
            for i, band in enumerate(("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"))
        },
    },
    ("m-cashew-plant", "corrected"): {
        "s2l2a": {band: i for i, band in enumerate(band for band in LABELLED_BANDS if band != "B10")}
    },
}


def columns(sensor: str, channels: dict[str, int]) -> Tensor:
    """The whole input of a stem, (1, bands, SIZE, SIZE): the mark of each band in its column, others at the mean."""
    modality = MODALITIES[sensor]
    low, span = torch.tensor(modality.mean) - 2 * torch.tensor(modality.std), 4 * torch.tensor(modality.std)
    values = torch.tensor(modality.mean)
    for column, band in enumerate(modality.bands):
        if band in channels:
            values[column] = (channels[band] + 1) * (100.0 if sensor != "s1rtc" else -1.0)
    return ((values - low) / span)[None, :, None, None].expand(1, -1, SIZE, SIZE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets whose channels are filled with their number."""
    path = tmp_path_factory.mktemp("marked")
    for name in {name for name, _ in FILES}:
        make_geobench(path, name, 2, 1, 1, marked=True, size=SIZE)
    return path


@pytest.mark.parametrize(("name", "bands"), list(FILES))
def test_each_band_reaches_its_kernel_column(root: Path, name: str, bands: str) -> None:
    data = open_bench(name, root, "train", bands=bands)
    encoder = load_encoder(
        ModelSpec("terrafm_tiny", size=SIZE, absent="mean", seed=1), data.task, data
    ).eval()
    torch.manual_seed(1)
    model = build_encoder("terrafm_tiny").eval()
    inputs = {sensor: columns(sensor, channels) for sensor, channels in FILES[name, bands].items()}
    with torch.inference_mode():
        found = encoder.embed(default_collate([data[0]]))["token"]
        expected = model(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        # The marks tell bands apart: any two columns exchanged give something else.
        for sensor, image in inputs.items():
            order = list(range(image.shape[1]))
            order[0], order[1] = order[1], order[0]
            assert not torch.allclose(
                model({**inputs, sensor: image[:, order]}), expected, rtol=1e-4, atol=1e-4
            )


def test_every_dataset_of_geobench_for_which_there_is_a_stem_is_here_or_like_one_that_is() -> None:
    stems = {
        name for name, kind in KINDS.items() if any("Sentinel" in type(band).__name__ for band in kind.bands)
    }
    assert stems - {name for name, _ in FILES} == {"m-bigearthnet", "m-SA-crop-type"}
