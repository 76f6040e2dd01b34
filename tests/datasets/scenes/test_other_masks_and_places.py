"""Further cases of the faults in reading: masks beside a file, coordinates of another CRS, metadata that lie."""

from dataclasses import replace

import numpy as np
import providers as p
import pytest
import rasterio
from affine import Affine
from test_providers import read

from refusals import refused
from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.modalities import S2L2A
from terrafm_tg.radiometry import Settings

HIDDEN = np.arange(60)[:, None].repeat(60, 1) < 20


def covered(image, hidden, under=lambda band: 7):
    return np.stack([np.where(hidden, under(b), image.at_ten(b)) for b in S2L2A.bands]).astype(np.uint16)


class TestMasks:
    """R8."""

    def expect(self, root, image):
        groups = read(root)[1]
        for resolution, expected in p.native_groups(image, "s2l2a", at_ten=True).items():
            np.testing.assert_array_equal(groups[resolution], np.where(HIDDEN, 0, expected))

    def test_in_a_file_beside(self, tmp_path):
        """GDAL writes ``x.tif.msk`` where a mask is not asked for in the file."""
        image = p.optical(60, baseline=300)
        path = p.tiff(tmp_path / f"{image.product}.tif", image, covered(image, HIDDEN, lambda band: 40 + len(band)))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
            file.write_mask(~HIDDEN)
        assert path.with_name(f"{path.name}.msk").is_file()
        self.expect(tmp_path, image)

    @pytest.mark.parametrize("name", ["dataMask", "data_mask", "valid", "Valid_mask", "ALPHA"])
    @pytest.mark.parametrize("place", [0, 5, 12])
    def test_as_a_band_anywhere(self, tmp_path, name, place):
        image = p.optical(60, baseline=300)
        stored, names = [*covered(image, HIDDEN, lambda band: 40 + len(band) + int(band[1:2]))], [*S2L2A.bands]
        stored.insert(place, np.where(HIDDEN, 0, 1).astype(np.uint16))
        names.insert(place, name)
        p.tiff(tmp_path / f"{image.product}.tif", image, np.stack(stored), names=names)
        self.expect(tmp_path, image)

    def test_one_number_in_all_bands_under_a_mask_of_another_name(self, tmp_path):
        image = p.optical(60, baseline=300)
        stored = np.concatenate([covered(image, HIDDEN), np.where(HIDDEN, 0, 1)[None].astype(np.uint16)])
        p.tiff(tmp_path / f"{image.product}.tif", image, stored, names=[*S2L2A.bands, "mask"])
        self.expect(tmp_path, image)


@pytest.mark.parametrize(
    ("epsg", "transform", "match"),
    [
        (4326, Affine(10, 0, 499_980, 0, -10, 5_400_000), "are not those of its CRS, in degrees"),
        (4326, Affine(9e-5, 0, 15, 0, -9e-5, 95), "are not those of its CRS, in degrees"),
        (32633, Affine(9e-5, 0, 15, 0, -9e-5, 48), "as degrees under a CRS in meters"),
        (32633, Affine(10, 0, 499_980, 0, -10, 5e9), "are not those of its CRS"),
    ],
)
def test_coordinates_of_another_crs(tmp_path, epsg, transform, match):
    image = p.optical(60, baseline=300)
    path = p.stack(tmp_path / "S2L2A", image)
    with rasterio.open(path, "r+") as file:
        file.crs, file.transform = f"EPSG:{epsg}", transform
    with refused(match=match):
        read(tmp_path)


class TestMetadataThatLie:
    """R1: a product's own file says that +1000 is held, over clouds that tell nothing."""

    def image(self, size, offset, **said):
        image = p.optical(size, 5000 + offset, **said)
        return replace(image, bands={b: np.where(x > 0, x, x) for b, x in image.bands.items()})

    @pytest.mark.parametrize("offset", [0, 1000])
    def test_dark_pixels_elsewhere_in_it_tell(self, tmp_path, offset):
        image = self.image(1500, offset)
        for band in ("B02", "B03", "B04", "B08"):  # a lake that is not in its middle
            image.bands[band][-140:, -140:] = 90 + offset
        p.safe(tmp_path, image, driver="GTiff")
        if offset:
            ((_, verdict),) = find_judged(tmp_path, Settings())[1]
            assert verdict.offset == 1000
        else:
            with refused(match=r"0 DN by its pixels .*metadata .*of -0.1.*set `offset` to 0"):
                find_judged(tmp_path, Settings())

    @pytest.mark.parametrize("offset", [0, 1000])
    def test_l1c_beside_it_tells(self, tmp_path, offset):
        clouds = self.image(60, 0)
        above = {band: np.rint(x / 1.1).astype(np.uint16) for band, x in clouds.bands.items()}
        cirrus = np.full((10, 10), 14, np.uint16)
        p.safe(tmp_path, replace(clouds, bands=above | {"B10": cirrus}, level="L1C", baseline=300), driver="GTiff")
        p.safe(tmp_path, self.image(60, offset), driver="GTiff")
        if offset:
            assert {v.modality: v.offset for _, v in find_judged(tmp_path, Settings())[1]} == {
                "s2l1c": 0,
                "s2l2a": 1000,
            }
        else:
            with refused(match=r"0 DN by its pixels \(the L1C image of the same day\).*set `offset` to 0"):
                find_judged(tmp_path, Settings())
