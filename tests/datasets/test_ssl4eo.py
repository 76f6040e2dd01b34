import numpy as np
import pytest
import rasterio
import torch
from torchgeo.datasets import SSL4EOS12

from data.ssl4eo import data as fake
from datasets.tiny_files import sample_of
from refusals import damaged, refused
from terrafm_tg.datasets import SSL4EOS12Tiles, build_index
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES

SPLITS = {"s1rtc": "s1", "s2l1c": "s2c", "s2l2a": "s2a"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssl4eo")
    fake.create(folder, (200, 100000))
    return folder


def test_every_date_is_a_tile_of_its_site(root):
    table = SSL4EOS12Tiles(root).table
    assert table.site.tolist() == ["0000200", "0000200", "0100000", "0100000"]
    for name, days in (("s2l2a", ["0604", "0813"]), ("s2l1c", ["0604", "0823"]), ("s1rtc", ["0607", "0903"])):
        assert table[f"date_{name}"].dt.strftime("%m%d").tolist() == days * 2
        assert table[f"has_{name}"].all()
        assert (table[f"offset_{name}"] == 0).all()
    assert not table.duplicated(["cell", "quadrant"]).any()
    assert table.cell[0] == table.cell[1] != table.cell[2]


def test_left_over_images_have_rows_of_their_own(tmp_path):
    more = fake.IMAGES | {
        "s1": (*fake.IMAGES["s1"], "S1B_IW_GRDH_1SDV_20210101T010800_20210101T010825_000001_000001_0001")
    }
    fake.create(tmp_path, images={k: v for k, v in more.items() if k != "s2c"})
    table = SSL4EOS12Tiles(tmp_path).table
    dates = table.date_s1rtc.dt.strftime("%Y%m%d").tolist()
    assert dates == ["20200607", "20200903", "20210101"]
    assert table.date_s2l2a.dt.strftime("%m%d").tolist() == ["0604", "0813", "0813"]


def test_native_pixels_are_the_files(root):
    sample = sample_of(SSL4EOS12Tiles(root, native=True), 3)
    for name, split in SPLITS.items():
        for resolution, bands in MODALITIES[name].native.items():
            image = fake.IMAGES[split][1]
            expected = np.stack([fake.pixels(split, 100000, image, b.replace("B0", "B")) for b in bands])
            expected = 10 ** (expected / 10) if split == "s1" else expected
            got = sample[f"image_{name}_{resolution}m"]
            assert got.shape[-1] == 2640 // resolution
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_agrees_with_torchgeo(tmp_path):
    """With one date per site TorchGeo's class has no choice; it repeats the pixels of coarse bands."""
    fake.create(tmp_path, (7,), {split: names[:1] for split, names in fake.IMAGES.items()})
    sample = sample_of(SSL4EOS12Tiles(tmp_path, native=True))
    for name, split in SPLITS.items():
        theirs = SSL4EOS12(tmp_path, split)
        image = theirs[7]["image"]
        for resolution, bands in MODALITIES[name].native.items():
            got = sample[f"image_{name}_{resolution}m"].float()
            got = got.repeat_interleave(resolution // 10, -1).repeat_interleave(resolution // 10, -2)
            got = 10 * torch.log10(got) if split == "s1" else got
            expected = image[[theirs.bands.index(band.replace("B0", "B")) for band in bands]]
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_real_site(real_data):
    folder = real_data / "ssl4eo_s12"
    dataset = SSL4EOS12Tiles(folder, native=True)
    assert dataset.table.date_s1rtc.dt.strftime("%m%d").tolist() == ["0607", "0903"]
    sample = sample_of(dataset)
    image = folder / "s2a/0000200/20200604T054639_20200604T054831_T43RCP"
    for key, channel, band in (("s2l2a_10m", 0, "B2"), ("s2l2a_20m", 3, "B8A"), ("s2l2a_60m", 1, "B9")):
        with rasterio.open(image / f"{band}.tif") as src:
            np.testing.assert_array_equal(sample[f"image_{key}"][channel], src.read(1))
    # B8A sees what B8 sees: the files' transforms would put it half a pixel beside
    near = sample["image_s2l2a_10m"][3].float().reshape(132, 2, 132, 2).mean(dim=(1, 3))
    assert np.corrcoef(near.ravel(), sample["image_s2l2a_20m"][3].ravel())[0, 1] > 0.99
    assert (sample["image_s1rtc_10m"] > 0).all()


def test_a_part_of_the_sensors(tmp_path):
    fake.create(tmp_path, images={"s1": fake.IMAGES["s1"]})
    assert [m.name for m in SSL4EOS12Tiles(tmp_path).modalities] == ["s1rtc"]
    with refused(match=r"holds no site of SSL4EO-S12 for s2l2a: expected files such as .*s2a/0000200"):
        SSL4EOS12Tiles(tmp_path, ["s2l2a", "s1rtc"])
    with refused(match=r"nowhere holds no site of SSL4EO-S12 for s2l2a, s2l1c, s1rtc.*'s2a', download=True"):
        SSL4EOS12Tiles(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["missing", "cut", "size"])
def test_damage_is_named(tmp_path, damage):
    fake.create(tmp_path, images={"s2a": fake.IMAGES["s2a"][:1]})
    dataset = SSL4EOS12Tiles(tmp_path)
    path = next(tmp_path.rglob("B11.tif"))
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        path.write_bytes((path.parent / "B2.tif").read_bytes())
    with damaged(match=rf"s2a/0000200/{path.parent.name} s2l2a cannot be used: .*B11"):
        sample_of(dataset)


def test_indexed_for_other_sites_than_lie_there(tmp_path):
    one = {"s1": fake.IMAGES["s1"][:1]}
    fake.create(tmp_path, (200,), one)
    table = build_index(tmp_path, workers=0, progress=False)
    assert SSL4EOS12Tiles(tmp_path).table.region.tolist() == table.region.tolist()
    fake.create(tmp_path, (201,), one)
    with refused(match="was made for other files"):
        SSL4EOS12Tiles(tmp_path)


def test_pictures_of_8_bits_are_refused(tmp_path):
    """A compressed copy of the dataset holds such, whose stretch differs by band."""
    fake.create(tmp_path)
    for path in tmp_path.glob("s2a/*/*/B12.tif"):
        with rasterio.open(path) as src:
            pixels, profile = (src.read() / 40).astype(np.uint8), src.profile
        with rasterio.open(path, "w", **profile | {"dtype": "uint8"}) as out:
            out.write(pixels)
    with pytest.raises(TerraFMError, match=r"not as published.*8-bit numbers"):
        SSL4EOS12Tiles(tmp_path)


def test_zeros_of_decibels_are_missing(tmp_path):
    """R7: by the same rule as in folders."""
    fake.create(tmp_path, images={"s1": fake.IMAGES["s1"][:1]})
    path = next(tmp_path.rglob("VV.tif"))
    with rasterio.open(path, "r+") as file:
        pixels = file.read()
        pixels[0, :50] = 0
        file.write(pixels)
    image = sample_of(SSL4EOS12Tiles(tmp_path, native=True))["image_s1rtc_10m"]
    assert (image[0, :50] == -32768).all()
    assert (image[0, 50:] > 0).all()
