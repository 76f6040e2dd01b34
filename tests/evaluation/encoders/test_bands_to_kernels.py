"""From the number written into each channel of a file to the kernel column of TerraFM's stem that it reaches."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from data.geobench.data import KINDS, LABELLED_BANDS, TRUE_BANDS, make_geobench
from data.tiny_bench import S2, batch_of, renamed, tiny_data
from data.tiny_bench import encoder as load
from terrafm_tg.datasets.bench import TASKS, BenchDataset, open_bench
from terrafm_tg.evaluation.encoders import BenchEncoder, ModelSpec, load_encoder
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L1C, S2L2A

LANDSAT = {"B02": 2, "B03": 1, "B04": 0, "B8A": 3, "B11": 4, "B12": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each channel is filled with its number in the file, from 1, times the unit of `reached`."""
    path = tmp_path_factory.mktemp("marked")
    for name in ("m-eurosat", "m-brick-kiln", "m-so2sat", "m-forestnet", "m-cashew-plant"):
        make_geobench(path, name, 3, 1, 1, marked=True)
    return path


def reached(encoder: BenchEncoder, data: BenchDataset, stem: str) -> dict[str, float]:
    """What each column of the stem's kernel reads, in the modality's unit: columns are let through one by one."""
    modality = MODALITIES[stem]
    conv = encoder.backbone.model.patch_embed.get_submodule(f"conv2d_{modality.stem}")
    image = encoder.prepare(default_collate([data[0]]))[stem]
    found = {}
    with torch.no_grad():
        conv.bias.zero_()
        for column, band in enumerate(modality.bands):
            conv.weight.zero_()
            conv.weight[:, column] = 1 / 256  # the mean over a patch
            value = conv(image)[0, 0, 0, 0].item()
            found[band] = (value - 0.5) * 4 * modality.std[column] + modality.mean[column]
    return found


def small(data: BenchDataset, **settings: object) -> BenchEncoder:
    return load(data, size=32, **settings)


def absent(modality, *bands: str) -> dict[str, float]:
    """Bands at their training mean."""
    return {band: modality.mean[modality.bands.index(band)] for band in bands}


@pytest.mark.parametrize("bands", ["corrected", "labelled"])
def test_eurosat(root: Path, bands: str) -> None:
    data = open_bench("m-eurosat", root, "train", bands=bands)
    names = TRUE_BANDS["m-eurosat"] if bands == "corrected" else LABELLED_BANDS
    expected = {band: 100.0 * (1 + names.index(band)) for band in S2L1C.bands}
    assert reached(small(data), data, "s2l1c") == pytest.approx(expected, abs=0.1)
    # Another stem has the same columns.
    assert reached(small(data, stem="s2l2a"), data, "s2l2a") == pytest.approx(expected, abs=0.1)


def test_brick_kiln(root: Path) -> None:
    corrected = open_bench("m-brick-kiln", root, "train")
    there = {b: 100.0 * (1 + i) for i, b in enumerate(TRUE_BANDS["m-brick-kiln"]) if b in S2L2A.bands}
    missing = absent(S2L2A, "B06", "B09")
    kept = reached(small(corrected, absent="mean"), corrected, "s2l2a")
    assert kept == pytest.approx(there | missing, abs=0.1)
    # Galileo's protocol has B8A stand in for B09.
    filled = reached(small(corrected), corrected, "s2l2a")
    assert filled == pytest.approx(there | missing | {"B09": there["B8A"]}, abs=0.1)

    labelled = open_bench("m-brick-kiln", root, "train", bands="labelled")
    expected = {band: 100.0 * (1 + LABELLED_BANDS.index(band)) for band in S2L2A.bands}
    assert reached(small(labelled), labelled, "s2l2a") == pytest.approx(expected, abs=0.1)


def test_so2sat_reaches_both_stems(root: Path) -> None:
    data = open_bench("m-so2sat", root, "train")
    fused = small(data)
    assert list(fused.readers) == ["s1rtc", "s2l1c"]
    radar = {band: float(x[0, 0]) for band, x in zip(("VV", "VH"), data[0]["image_s1rtc"], strict=True)}
    assert reached(fused, data, "s1rtc") == pytest.approx(radar, abs=1e-3)
    assert radar["VV"] != radar["VH"]
    optics = dict(zip(data.task.sensors["s2l1c"], data[0]["image_s2l1c"][:, 0, 0].tolist(), strict=True))
    expected = optics | {"B01": optics["B02"], "B09": optics["B8A"]}
    assert reached(fused, data, "s2l1c") == pytest.approx(expected, abs=0.1)
    assert list(small(data, sensors=["s1rtc"]).readers) == ["s1rtc"]


def test_datasets_whose_names_are_right(root: Path) -> None:
    """m-bigearthnet and m-SA-crop-type have the bands of m-cashew-plant; no other dataset has a stem."""
    data = open_bench("m-cashew-plant", root, "train")
    names = [band for band in LABELLED_BANDS if band != "B10"]
    expected = {band: 100.0 * (1 + names.index(band)) for band in S2L2A.bands}
    assert reached(small(data), data, "s2l2a") == pytest.approx(expected, abs=0.1)
    stems = {name for name, kind in KINDS.items() if any("Sentinel" in type(band).__name__ for band in kind.bands)}
    alike = {"m-bigearthnet", "m-SA-crop-type"}
    assert stems == {"m-eurosat", "m-brick-kiln", "m-so2sat", "m-cashew-plant"} | alike
    for name in alike:
        assert TASKS[name].sensors == data.task.sensors


def test_landsat_goes_through_the_nearest_bands(root: Path) -> None:
    """Statistics of eight-bit images are brought to the stem's: a pixel at the mean is at the mean."""
    data = open_bench("m-forestnet", root, "train")
    assert small(data).readers["s2l2a"].sources == tuple(
        ("landsat8", LANDSAT[band]) for band in S2L2A.bands if band in LANDSAT
    )
    middle = {"landsat8": data.mean["landsat8"][:, None, None].expand(6, 32, 32)}
    found = reached(small(data), [{"image_landsat8": middle["landsat8"]}], "s2l2a")
    assert found == pytest.approx(dict(zip(S2L2A.bands, S2L2A.mean, strict=True)), rel=1e-3)


def test_every_order_of_the_bands_gives_the_same_embedding(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s1rtc": S1RTC.bands, "s2l1c": S2})
    order = torch.randperm(len(S2), generator=torch.Generator().manual_seed(3)).tolist()
    other = renamed(data, {"s1rtc": S1RTC.bands, "s2l1c": tuple(S2[i] for i in order)})
    batch = batch_of(data)
    shuffled = batch | {"image_s2l1c": batch["image_s2l1c"][:, order]}
    for model in ("terrafm_nano", "timm/vit_tiny_patch16_224"):
        encoders = [load_encoder(ModelSpec(model, sensors=["s2l1c"]), d.task, d) for d in (data, other)]
        with torch.inference_mode():
            tokens = [e.embed(b)["token"] for e, b in zip(encoders, (batch, shuffled), strict=True)]
        torch.testing.assert_close(*tokens, rtol=1e-3, atol=1e-4)
        assert (tokens[0][0] - tokens[0][1]).abs().max() > 1e-3  # and it does depend on the image
