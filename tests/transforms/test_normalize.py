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
    mean, std = (np.array(v)[:, None, None] for v in (modality.mean, modality.std))
    np.testing.assert_allclose(Normalize(modality.name)(x), (x - (mean - 2 * std)) / (4 * std), atol=1e-5)


def test_the_mean_is_a_half_and_nothing_is_clipped():
    mean, std = (torch.tensor(x)[:, None, None] for x in (S2L2A.mean, S2L2A.std))
    normalize = Normalize("s2l2a")
    torch.testing.assert_close(normalize(mean.expand(-1, 3, 3)), torch.full((12, 3, 3), 0.5))
    torch.testing.assert_close(normalize((mean + 8 * std).expand(-1, 3, 3)), torch.full((12, 3, 3), 2.5))


def test_single_batch_and_time_series_are_the_same():
    x = image(S2L1C)
    normalize = Normalize("s2l1c")
    expected = normalize(x)
    torch.testing.assert_close(normalize(x[None])[0], expected)
    torch.testing.assert_close(normalize(x[None, None].expand(2, 3, -1, -1, -1))[1, 2], expected)


def test_bands_in_any_order():
    full, bands = image(S2L2A), ["B12", "B02", "b8a"]
    columns = S2L2A.band_indices(bands)
    torch.testing.assert_close(
        Normalize("s2l2a", bands=bands)(full[columns]), Normalize("s2l2a")(full)[columns]
    )


def test_dicts():
    sample = {"image_s1rtc": image(S1RTC), "image_s2l2a": image(S2L2A)[:4], "label": torch.tensor(3)}
    before = copy.deepcopy(sample)
    normalize = Normalize(bands={"s2l2a": S2L2A.bands[:4]})
    output = normalize(sample)
    torch.testing.assert_close(output["image_s1rtc"], Normalize("s1rtc")(sample["image_s1rtc"]))
    torch.testing.assert_close(
        output["image_s2l2a"], Normalize("s2l2a", bands=S2L2A.bands[:4])(sample["image_s2l2a"])
    )
    assert output["label"] is sample["label"]
    torch.testing.assert_close(sample, before)
    alone = Normalize("s1rtc")({"image": before["image_s1rtc"]})
    torch.testing.assert_close(alone["image"], output["image_s1rtc"])


def test_missing_pixels_and_integers():
    x = image(S1RTC)
    x[0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, -12.0])
    output = Normalize("s1rtc")(x)
    assert output[0, 0, :3].tolist() == [0.5] * 3
    assert output.isfinite().all()
    stored = image(S2L2A).clamp(1, None).to(torch.int16)
    torch.testing.assert_close(Normalize("s2l2a")(stored), Normalize("s2l2a")(stored.float()))


@pytest.mark.parametrize(
    ("modality", "x", "hint"),
    [
        ("s2l2a", torch.rand(12, 8, 8), "reflectance: multiply it by 10,000"),
        ("s2l1c", torch.rand(2, 12, 8, 8), "reflectance: multiply it by 10,000"),
        ("s1rtc", torch.rand(2, 8, 8), "linear power: take 10 \\* log10"),
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


def test_the_right_unit_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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


def test_moves_and_pickles():
    normalize = pickle.loads(pickle.dumps(Normalize("s2l2a")))
    assert not normalize.state_dict()
    assert normalize(image(S2L2A).half()).dtype == torch.float16


def test_compiles_without_a_break():
    x = image(S2L2A)
    compiled = torch.compile(Normalize("s2l2a"), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), Normalize("s2l2a")(x))
