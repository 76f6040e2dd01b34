import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.transforms import Augment, MultiCrop, Normalize
from terrafm_tg.transforms.augment import NO_CHANGE
from terrafm_tg.transforms.resample import FLOOR

SMALL = {"global_size": 32, "local_size": 16, "local_crops": 3}


def small(**changes):
    return MultiCrop(**(SMALL | changes))


def views_of(crop, batch):
    """(group, view, modality, position) -> image."""
    images = {}
    for name, group in crop(batch, crop.plan(batch)).items():
        assert list(group.images) == list(group.sample_idx)
        for modality, x in group.images.items():
            for row, image in zip(group.sample_idx[modality].tolist(), x, strict=True):
                view, sample = divmod(row, len(batch["position"]))
                images[name, view, modality, int(batch["position"][sample])] = image
        assert sum(key[0] == name for key in images) == sum(map(len, group.sample_idx.values()))
    return images


def test_complete_tiles_are_rendered_apart_and_give_the_same(make_batch):
    """Each view is that of its own tile, whatever else is in the batch and whether or not holes are looked for."""
    batch = make_batch(list(range(6)), without_s1=(2,))
    for tile, modality in ((1, S2L2A), (4, S2L2A), (0, S1RTC)):
        for resolution in modality.native:
            batch[modality.native_key(resolution)][tile, :, :2] = 0
    complete = torch.ones(6, len(MODALITIES), dtype=torch.bool)
    complete[2, 0] = complete[[1, 4], 2] = complete[0, 0] = False
    batch["complete"] = complete
    crop = small(modality_probability=1.0)
    plan = crop.plan(batch)
    counts = {m: plan[f"local_{m}_complete"] for m in MODALITIES}
    assert counts == {"s1rtc": 3 * 4, "s2l1c": 3 * 6, "s2l2a": 3 * 4}
    unknown = torch.zeros(6, len(MODALITIES), dtype=torch.bool)
    torch.testing.assert_close(
        views_of(crop, batch), views_of(crop, batch | {"complete": unknown}), atol=1e-5, rtol=1e-5
    )
    alone = {key: x[:1] for key, x in batch.items()}
    together = views_of(crop, batch)
    for key, view in views_of(crop, alone).items():
        torch.testing.assert_close(view, together[key], atol=1e-6, rtol=1e-6)


def flat_batch(value, tile=24, n=2, modality=S2L2A):
    """Tiles of one value everywhere, of one modality."""
    batch = {"position": torch.arange(n), "epoch": torch.zeros(n, dtype=torch.int64)}
    batch[f"sample_idx_{modality.name}"] = torch.arange(n)
    for resolution, bands in modality.native.items():
        shape = (n, len(bands), tile * 10 // resolution, tile * 10 // resolution)
        batch[modality.native_key(resolution)] = torch.full(shape, value)
    return batch


def in_unit(x, modality):
    """Normalized bands (..., C, H, W), back in the modality's unit."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (modality.mean, modality.std))
    return x * 4 * std + mean - 2 * std


def test_shapes_and_counts(make_batch):
    batch = make_batch([3, 8, 5, 1], without_s1=(8,))
    groups = small()(batch, small().plan(batch))
    assert {name: group.size for name, group in groups.items()} == {
        "teacher_global": 8, "student_global": 8, "student_local": 12,
    }  # fmt: skip
    for name, group in groups.items():
        edge = 16 if name == "student_local" else 32
        for modality, x in group.images.items():
            assert x.shape == (len(group.sample_idx[modality]), len(MODALITIES[modality].bands), edge, edge)
            assert x.dtype == torch.float32
            assert x.isfinite().all()
            assert not x.requires_grad
            assert len(set(group.sample_idx[modality].tolist())) == len(x)
        assert set(torch.cat(list(group.sample_idx.values())).tolist()) == set(range(group.size))


def test_a_view_depends_on_its_key_alone(make_batch):
    """Not on the batch, its order, its size, or whether a neighbor lacks radar or pixels."""
    crop, positions = small(), [4, 9, 2, 7, 11, 30]
    whole = make_batch(positions, without_s1=(2,))
    expected = views_of(crop, whole)
    parts = [make_batch(part, without_s1=(2,)) for part in ([30, 2], [9], [11, 7, 4])]
    parts[0]["image_s2l2a_20m"][0, :, :5] = 0  # pixels that are missing in 30 only
    found = {}
    for part in parts:
        found |= views_of(crop, part)
    assert found.keys() == expected.keys()
    for key, image in expected.items():
        if key[-1] != 30:
            torch.testing.assert_close(found[key], image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"positions": [15, 16]}])
def test_another_key_is_another_view(make_batch, change):
    key = {"positions": [5, 6], "epoch": 0, "seed": 0}
    plans = [
        small(seed=used["seed"]).plan(make_batch(used["positions"], epoch=used["epoch"]))
        for used in (key, key | change)
    ]
    mine, theirs = (torch.cat([plan[f"local_{m}_box"] for m in MODALITIES]) for plan in plans)
    assert mine.shape != theirs.shape or not torch.isclose(mine, theirs).any()


def test_a_sample_that_no_sampler_drew_is_keyed_by_its_row(make_batch):
    batch = make_batch([1, 2]) | {"position": torch.tensor([-1, -1]), "row": torch.tensor([10, 20])}
    boxes = small(modality_probability=1.0).plan(batch)["global_s1rtc_box"].reshape(2, 2, 4)
    assert not torch.isclose(boxes[:, 0], boxes[:, 1]).all()


def test_sensors_and_networks_share_the_crop(make_batch):
    crop = small(augment=NO_CHANGE)
    batch = make_batch(list(range(20)))
    for m in MODALITIES.values():  # one picture in all bands of all sensors
        for resolution, bands in m.native.items():
            picture = torch.linspace(0.2, 0.9, 48 * 10 // resolution)
            picture = picture[:, None] * picture.flip(0) ** 2
            stored = picture if m == S1RTC else (10_000 * picture).to(torch.uint16)
            batch[m.native_key(resolution)] = stored.expand(20, len(bands), -1, -1).contiguous()
    shared = 0
    images = views_of(crop, batch)
    for (name, view, modality, position), image in images.items():
        twin = images.get(("student_global", view, modality, position))
        if name == "teacher_global" and twin is not None:
            shared += 1
            assert torch.equal(image, twin)
        other = images.get((name, view, "s2l2a", position))
        if modality == "s1rtc" and other is not None:
            power, number = 10 ** (in_unit(image, S1RTC)[0] / 10), in_unit(other, S2L2A)[S2L2A.bands.index("B03")]
            torch.testing.assert_close(power, number / 10_000, atol=2e-3, rtol=0)
    assert shared > 10


def drawn_sets(crop, n, lack=False):
    """Modality sets (V, B) of teacher, student's global and local views, as numbers of three bits."""
    batch = {"position": torch.arange(n), "epoch": torch.zeros(n, dtype=torch.int64)}
    batch |= {f"sample_idx_{m}": torch.arange(0 if lack and m == "s1rtc" else n) for m in MODALITIES}
    plan = crop.plan(batch)
    sets = {}
    for name, kind in (("teacher", "global"), ("student", "global"), ("local", "local")):
        views = {"global": 2, "local": SMALL["local_crops"]}[kind]
        sets[name] = np.zeros(views * n, int)
        for bit, m in enumerate(MODALITIES):
            rows = plan[f"{kind}_{m}_view_idx"].numpy()
            cut = plan[f"global_{m}_{name}"] if kind == "global" else None
            rows = rows[:cut] if name == "teacher" else rows[cut:]
            sets[name][rows] += 2**bit
    return {name: x.reshape(-1, n) for name, x in sets.items()}


def test_modality_sets_are_uniform_and_independent():
    sets = drawn_sets(small(), 7000)
    views = [*sets["teacher"], *sets["student"], *sets["local"]]
    for view in views:
        assert stats.chisquare(np.bincount(view, minlength=8)[1:]).pvalue > 1e-3
    for i, one in enumerate(views):
        for other in views[:i]:
            table = np.histogram2d(one, other, bins=7, range=[[0.5, 7.5]] * 2)[0]
            assert stats.chi2_contingency(table).pvalue > 1e-4
    neighbors = np.histogram2d(views[0][:-1], views[0][1:], bins=7, range=[[0.5, 7.5]] * 2)[0]
    assert stats.chi2_contingency(neighbors).pvalue > 1e-4


def test_samples_without_radar_never_draw_it():
    for view in np.concatenate(list(drawn_sets(small(), 3000, lack=True).values())):
        assert stats.chisquare(np.bincount(view, minlength=8)[[2, 4, 6]]).pvalue > 1e-3
        assert np.bincount(view, minlength=8)[[0, 1, 3, 5, 7]].sum() == 0


def test_without_fusion_a_view_shows_one_modality(make_batch):
    crop, batch = small(fuse=False), make_batch([1, 2, 3, 4])
    for group in crop(batch, crop.plan(batch)).values():
        assert sorted(torch.cat(list(group.sample_idx.values())).tolist()) == list(range(group.size))


def test_one_modality_alone(make_batch):
    crop, batch = small(modalities=["s2l2a"], local_crops=0), make_batch([1, 2])
    groups = crop(batch, crop.plan(batch))
    assert list(groups["teacher_global"].images) == ["s2l2a"]
    assert groups["teacher_global"].sample_idx["s2l2a"].tolist() == [0, 1, 2, 3]
    assert groups["student_local"][:3] == ({}, {}, 0)


def test_a_modality_that_no_sample_has(make_batch):
    batch = make_batch([1, 2], without_s1=(1, 2))
    crop = small()
    assert all("s1rtc" not in group.images for group in crop(batch, crop.plan(batch)).values())
    assert list(crop.whole(batch, 32).images) == ["s2l1c", "s2l2a"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), tile=st.sampled_from([12, 66, 132, 534]), local=st.booleans())
def test_every_band_of_every_view_shows_the_same_place(seed, tile, local):
    """The whole path from stored integers to normalised views, all crops, flips and turns."""
    crop = MultiCrop(["s2l2a"], 48, 16, 2, augment=NO_CHANGE, seed=seed)
    for axis in (0, 1):
        batch = flat_batch(1, tile=tile, n=1)
        for resolution, bands in S2L2A.native.items():
            step = resolution // 10
            ramp = 1000 + 100 * (torch.arange(tile // step) + 0.5) * step  # 100 per pixel of 10 m
            plane = ramp[:, None] if axis == 0 else ramp
            stored = plane.expand(1, len(bands), tile // step, tile // step).round().to(torch.uint16)
            batch[S2L2A.native_key(resolution)] = stored.contiguous()
        for group in crop(batch, crop.plan(batch)).values():
            number = in_unit(group.images["s2l2a"], S2L2A)
            assert (number.amax(1) - number.amin(1)).max() <= 0.05 * 100
            assert number.amin() > 1000
            assert number.amax() < 1000 + 100 * tile


def test_radar_is_averaged_as_power():
    power = torch.distributions.Exponential(1 / 0.05).sample((1, 2, 96, 96)) + 1e-6  # fully developed speckle
    batch = flat_batch(1.0, n=1, modality=S1RTC) | {"image_s1rtc_10m": power}
    decibels = in_unit(small().whole(batch, 8, ["s1rtc"]).images["s1rtc"], S1RTC)
    expected = 10 * power.reshape(1, 2, 8, 12, 8, 12).mean((3, 5)).log10()
    assert (decibels - expected).abs().mean() < 0.15
    assert (10 * power.log10()).mean() < expected.mean() - 2  # which a mean of decibels would give


@pytest.mark.parametrize("lowest", [torch.tensor(1e-9), torch.tensor(-32767, dtype=torch.int16)])
def test_radar_below_the_floor(lowest):
    batch = flat_batch(1.0, modality=S1RTC)
    batch["image_s1rtc_10m"] = lowest.expand_as(batch["image_s1rtc_10m"])
    x = small().whole(batch, 16, ["s1rtc"]).images["s1rtc"]
    torch.testing.assert_close(x, Normalize("s1rtc")(torch.full_like(x, FLOOR)))


@pytest.mark.parametrize("augment", [NO_CHANGE, Augment()])
def test_missing_pixels_become_the_mean(make_batch, augment):
    batch = make_batch([1, 2, 3])
    batch["image_s2l2a_10m"][:, 1] = 0  # B03
    batch["image_s2l1c_60m"][1] = 0  # B01 and B09 of one tile
    batch["image_s1rtc_10m"][:, :, :, :24] = torch.tensor([-32768.0, torch.nan])[torch.arange(24) % 2]
    crop = small(augment=augment, modality_probability=1.0)
    for group in crop(batch, crop.plan(batch)).values():
        assert (group.images["s2l2a"][:, S2L2A.bands.index("B03")] == 0.5).all()
        assert (group.images["s2l2a"][:, 0] != 0.5).all()
        for row, x in zip(group.sample_idx["s2l1c"].tolist(), group.images["s2l1c"], strict=True):
            assert ((x[[0, 9]] == 0.5).all() == (row % 3 == 1)).all()
    whole = crop.whole(batch, 24).images["s1rtc"]
    assert (whole[..., :12] == 0.5).all()
    assert (whole[..., 12:] != 0.5).all()


def test_augmentation_is_gain_and_offset_in_the_modalitys_unit():
    batch, crop = flat_batch(0.1, modality=S1RTC, n=8), small(modalities=["s1rtc"])
    shift = in_unit(crop(batch, crop.plan(batch))["student_global"].images["s1rtc"], S1RTC) + 10
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), atol=1e-3, rtol=0)
    assert shift.abs().max() <= 1.5  # dB
    assert shift.std() > 0.2


def test_whole_tiles_are_north_up(make_batch):
    batch = make_batch([1, 2, 3], without_s1=(2,))
    batch["image_s2l2a_10m"][:, :, :24] = 100
    batch["image_s2l2a_10m"][:, :, 24:, :24] = 9000
    batch["image_s2l2a_10m"][:, :, 24:, 24:] = 3000
    whole = small().whole(batch, 16, ["s1rtc", "s2l2a"])
    assert whole.size == 3
    assert whole.sample_idx["s1rtc"].tolist() == [0, 2]
    number = in_unit(whole.images["s2l2a"], S2L2A)
    for band in (1, 2, 3, 7):
        corners = number[0, band, [0, 0, -1, -1], [0, -1, 0, -1]]
        torch.testing.assert_close(corners, torch.tensor([100.0, 100.0, 9000.0, 3000.0]), atol=0.5, rtol=0)


def test_the_stored_size_of_a_group_does_not_matter():
    """20 and 60 m bands that a file holds at 10 m."""
    fine = flat_batch(1, tile=48, n=1)
    coarse = dict(fine)
    for resolution, bands in S2L2A.native.items():
        for batch, step in ((fine, 1), (coarse, resolution // 10)):
            ramp = 50 + 100 * (torch.arange(48 // step) + 0.5) * step
            batch[S2L2A.native_key(resolution)] = ramp.expand(1, len(bands), 48 // step, -1).to(torch.uint16)
    torch.testing.assert_close(
        small().whole(fine, 32, ["s2l2a"]).images, small().whole(coarse, 32, ["s2l2a"]).images, atol=1e-3, rtol=0
    )


def test_nothing_waits_for_the_device(make_batch):
    """Fake tensors of a GPU raise as soon as a value is asked for."""
    batch = make_batch([1, 2, 3], without_s1=(2,))
    crop = small()
    plan = crop.plan(batch)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        device = torch.device("cuda")
        fake = {key: torch.empty(x.shape, dtype=x.dtype, device=device) for key, x in batch.items()}
        fake_plan = {
            key: torch.empty(x.shape, dtype=x.dtype, device=device) if isinstance(x, torch.Tensor) else x
            for key, x in plan.items()
        }
        groups = crop(fake, fake_plan)
        assert mode is not None
    for name, group in crop(batch, plan).items():
        for modality, x in group.images.items():
            assert groups[name].images[modality].shape == x.shape
            assert groups[name].images[modality].device.type == "cuda"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_scale": (0.0, 1.0)}, "`global_scale` is"),
        ({"local_scale": (0.3, 0.1)}, "`local_scale` is"),
        ({"ratio": (2.0, 1.0)}, "`ratio` is"),
        ({"modality_probability": 0.0}, "`modality_probability` is 0.0"),
        ({"local_crops": -1}, "-1 local crops"),
        ({"global_size": 0}, "global ones of 0 px"),
        ({"modalities": ["s3"]}, "'s3' is unknown"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(TerraFMError, match=message):
        MultiCrop(**changes)


def test_impossible_batches(make_batch):
    batch = make_batch([1, 2], without_s1=(2,))
    with pytest.raises(TerraFMError, match="Sample 1 of the batch has none of the modalities s1rtc"):
        MultiCrop(["s1rtc"]).plan(batch)
    plan = small().plan(batch)
    with pytest.raises(TerraFMError, match=r"no image_s2l2a_60m.*native=True"):
        small()({key: x for key, x in batch.items() if key != "image_s2l2a_60m"}, plan)
    with pytest.raises(TerraFMError, match=r"must be \(B, 4, H, W\), bands B02"):
        small()(batch | {"image_s2l2a_10m": batch["image_s2l2a_10m"][:, :3]}, plan)


def test_tiles_smaller_than_their_crops_are_said():
    def said(side, **changes):
        return MultiCrop(**changes).enlarged({"image_s2l2a_10m": torch.zeros(2, 4, side, side)})

    assert said(534) == said(224) == ""
    assert said(6).startswith(
        "Tiles are 6 pixels across: global crops of 224 pixels enlarge them 37 times at least and "
    )
    assert "local crops of 96 pixels enlarge them 32 times at least" in said(6)
    assert "local" not in said(200).partition(", so that")[0]
    assert said(6, global_size=6, local_size=3) == ""
    assert MultiCrop().enlarged({}) == ""
