import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L1C, S2L2A
from terrafm_tg.transforms import Normalize


def image(modality, bands=None, size=4):
    """Values between the mean less and the mean plus a deviation."""
    columns = modality.band_indices(bands or modality.bands)
    mean, std = (torch.tensor(x)[columns, None, None] for x in (modality.mean, modality.std))
    return mean + std * (2 * torch.rand(len(columns), size, size) - 1)


@pytest.mark.parametrize("modality", MODALITIES.values(), ids=MODALITIES)
def test_the_papers_formula(modality):
    x = image(modality)
    x[:, 0] += 8 * torch.tensor(modality.std)[:, None]  # nothing is clipped
    mean, std = (np.array(v)[:, None, None] for v in (modality.mean, modality.std))
    np.testing.assert_allclose(Normalize(modality.name)(x), (x - (mean - 2 * std)) / (4 * std), atol=1e-5)


def test_single_batch_and_time_series_are_the_same():
    x = image(S2L1C)
    normalize = Normalize("s2l1c")
    expected = normalize(x)
    torch.testing.assert_close(normalize(x[None])[0], expected)
    torch.testing.assert_close(normalize(x[None, None].expand(2, 3, -1, -1, -1))[1, 2], expected)


@pytest.mark.parametrize("bands", [["B12", "B02", "b8a"], "B03"])
def test_bands_in_any_order_or_one_by_its_name(bands):
    full, columns = image(S2L2A), S2L2A.band_indices([bands] if isinstance(bands, str) else bands)
    torch.testing.assert_close(Normalize("s2l2a", bands=bands)(full[columns]), Normalize("s2l2a")(full)[columns])


def test_dicts():
    sample = {"image_s1rtc": image(S1RTC), "image_s2l2a": image(S2L2A)[:4], "label": torch.tensor(3)}
    before = copy.deepcopy(sample)
    normalize = Normalize(bands={"s2l2a": S2L2A.bands[:4]})
    output = normalize(sample)
    torch.testing.assert_close(output["image_s1rtc"], Normalize("s1rtc")(sample["image_s1rtc"]))
    torch.testing.assert_close(output["image_s2l2a"], Normalize("s2l2a", bands=S2L2A.bands[:4])(sample["image_s2l2a"]))
    assert output["label"] is sample["label"]
    torch.testing.assert_close(sample, before)
    for alone, key in ((Normalize("s1rtc"), "image"), (Normalize(), "s1rtc")):
        torch.testing.assert_close(alone({key: before["image_s1rtc"]}), {key: output["image_s1rtc"]})


def test_missing_pixels_and_integers():
    x = image(S1RTC)
    x[0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, -12.0])
    output = Normalize("s1rtc")(x)
    assert output[0, 0, :3].tolist() == [0.5] * 3
    assert output.isfinite().all()
    whole = image(S2L2A).clamp(1, None).round()
    for kind in (torch.int16, torch.uint16, torch.int32):
        stored = whole.to(kind)
        for pixels in (stored, stored.numpy(), {"image": stored.numpy()}):
            found = Normalize("s2l2a")(pixels)
            found = found["image"] if isinstance(found, dict) else found
            torch.testing.assert_close(found, Normalize("s2l2a")(whole))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("modality", "fill", "number"),
    [(S2L2A, 0, torch.uint16), (S2L2A, -9999, torch.int16), (S2L1C, -32768, torch.int16), (S2L1C, 0, torch.float32),
     (S1RTC, -9999, torch.float32), (S1RTC, -32768, torch.float32)],
)  # fmt: skip
def test_what_no_pixel_can_hold_is_missing(modality, fill, number):
    """As in pretraining; a dark or negative pixel stays what it is."""
    x = image(modality).abs().clamp(1) * (-1 if modality.unit == "dB" else 1)
    x[0, 0, 0] = fill
    output = Normalize(modality.name)(x.to(number))
    assert output[0, 0, 0] == 0.5
    torch.testing.assert_close(output[0, 1], Normalize(modality.name)(x.to(number).float())[0, 1])
    dark = x.clone()
    dark[0, 0, 0] = -60.0
    assert Normalize(modality.name)(dark)[0, 0, 0] == pytest.approx(
        (-60 - modality.mean[0]) / (4 * modality.std[0]) + 0.5
    )


@pytest.mark.parametrize(
    ("modality", "x", "hint"),
    [
        ("s2l2a", torch.rand(12, 8, 8), "reflectance: multiply it by 10,000"),
        ("s2l1c", torch.rand(2, 12, 8, 8), "reflectance: multiply it by 10,000"),
        ("s2l2a", torch.randint(0, 256, (12, 8, 8), dtype=torch.uint8), "8-bit picture"),
        ("s1rtc", torch.rand(2, 8, 8), "linear power: take 10 \\* log10"),
        ("s1rtc", torch.full((2, 8, 8), -32768.0), "set missing pixels to NaN"),
    ],
)
def test_another_unit_warns_once(modality, x, hint):
    normalize = Normalize(modality)
    with pytest.warns(UserWarning, match=hint) as record:
        normalize(x)
    assert len(record) == 1
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalize(x)


def test_each_sensor_of_a_sample_warns_for_itself():
    normalize = Normalize()
    with pytest.warns(UserWarning, match="must be in") as record:
        normalize({"image_s1rtc": torch.rand(2, 8, 8), "image_s2l1c": torch.rand(12, 8, 8)})
    assert ["in dB" in str(w.message) for w in record] == [True, False]
    assert {w.filename for w in record} == {__file__}


@pytest.mark.filterwarnings("error")
def test_the_right_unit_does_not_warn():
    for modality in MODALITIES.values():
        Normalize(modality.name)(image(modality))
    Normalize("s1rtc")(torch.full((2, 4, 4), torch.nan))


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: Normalize("sar"), None, "'sar' is unknown"),
        (lambda: Normalize("s1rtc", bands=["HH"]), None, "'HH' is not one of s1rtc's bands"),
        (lambda: Normalize(bands=["B02"]), None, "name the modality too"),
        (lambda: Normalize(bands={"s9": ["B02"]}), None, "is unknown"),
        (lambda: Normalize(), torch.rand(2, 8, 8), "with `modality=`"),
        (lambda: Normalize(), {"image": torch.rand(2, 8, 8)}, "with `modality=`"),
        (lambda: Normalize(), {"mask": torch.rand(8, 8)}, "expected one of image, image_s1rtc"),
        (lambda: Normalize("s2l2a"), torch.rand(3, 8, 8), r"must be \(\.\.\., 12, H, W\).*name yours"),
    ],
)
def test_bad_input(make, x, message):
    with pytest.raises(TerraFMError, match=message):
        make()(x)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_resizes_images_and_mask(leading):
    sample = {"image": image(S2L2A, size=12).expand(*leading, -1, -1, -1), "label": torch.tensor(1)}
    sample["mask"] = torch.randint(0, 1000, (*leading, 12, 12))
    output = Normalize("s2l2a", size=(24, 36))(sample)
    assert output["image"].shape == (*leading, 12, 24, 36)
    assert output["mask"].dtype == torch.int64
    assert torch.equal(output["mask"], sample["mask"].repeat_interleave(2, -2).repeat_interleave(3, -1))
    assert Normalize("s2l2a")(sample)["mask"] is sample["mask"]
    mean = torch.tensor(S2L2A.mean)[:, None, None].repeat(*leading, 1, 10, 10)
    mean[..., 2, 2] = torch.nan  # which does not spread
    torch.testing.assert_close(Normalize("s2l2a", size=7)(mean), torch.full((*leading, 12, 7, 7), 0.5))


def test_moves_and_pickles():
    normalize = pickle.loads(pickle.dumps(Normalize("s2l2a")))
    assert not normalize.state_dict()
    assert normalize(image(S2L2A).half()).dtype == torch.float16


def test_compiles_without_a_break():
    x = image(S2L2A)
    compiled = torch.compile(Normalize("s2l2a"), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), Normalize("s2l2a")(x))
