"""Writes the same pixels as each provider lays them out: names, folders, metadata, formats.

An :class:`Image` says which pixels there are and what is said about them; the two may differ. Every writer takes a
folder and an image and returns what a user would have downloaded below it.
"""

import json
import shutil
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from rasterio.crs import CRS

from terrafm_tg.modalities import MODALITIES, S2L2A

COMMON = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B10": "cirrus", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
RES = dict(zip(S2L2A.bands, S2L2A.resolutions, strict=True)) | {"B10": 60, "VV": 10, "VH": 10}


@dataclass(frozen=True)
class Image:
    """Pixels of one scene, (h, w) by band at their own resolution, and what its metadata say."""

    bands: dict[str, np.ndarray]
    level: str = "L2A"
    baseline: int | None = 509  # said; None: nothing is
    applied: bool | None = None  # +1000 is said to be taken off
    time: str = "20230302T095029"
    tile: str = "33UXP"
    platform: str = "S2B"
    epsg: int = 32633
    x: float = 499_980
    y: float = 5_400_000
    orbit: str = "ascending"
    more: dict = field(default_factory=dict)

    @property
    def product(self) -> str:
        said = f"N{self.baseline:04d}" if self.baseline else "N"
        return f"{self.platform}_MSI{self.level}_{self.time}_{said}_R079_T{self.tile}_20230302T104753"

    @property
    def stem(self) -> str:
        return f"T{self.tile}_{self.time}"

    @property
    def size(self) -> int:
        return max(len(x) for x in self.bands.values())

    def res(self, band: str) -> float:
        return 10 * self.size / len(self.bands[band])

    def at_ten(self, band: str) -> np.ndarray:
        """A band at 10 m: each coarser pixel repeated."""
        times = self.size // len(self.bands[band])
        return self.bands[band].repeat(times, 0).repeat(times, 1)


def optical(size=120, offset=0, level="L2A", seed=0, **said) -> Image:
    """An image whose pixels tell everything: dark ends of 40 to 300 DN, bright ones above, B10 nearly black."""
    random = np.random.default_rng(seed)
    scene = random.random((size // 6, size // 6))
    bands = {}
    for number, band in enumerate((*S2L2A.bands, *(["B10"] if level == "L1C" else []))):
        times = 60 // RES[band]
        land = scene.repeat(times, 0).repeat(times, 1)
        noise = random.normal(0, 20, land.shape)
        values = 60 + 10 * number + (land**2) * (2000 + 150 * number) + noise
        values = random.normal(12, 3, land.shape) if band == "B10" else values
        bands[band] = (np.rint(values).clip(1) + offset).astype(np.uint16)
    return Image(bands, level, **said)


def radar(size=120, seed=1, unit="linear", **said) -> Image:
    """Linear gamma0 of VV and VH, VH seven decibels below, or what ``unit`` makes of it."""
    random = np.random.default_rng(seed)
    vv = random.gamma(4, 0.25, (size, size)) * 10 ** (-11 / 10)
    vh = random.gamma(4, 0.25, (size, size)) * 10 ** (-18 / 10)
    how = {"linear": lambda x: x, "dB": lambda x: 10 * np.log10(x), "amplitude": np.sqrt}[unit]
    bands = {"VV": how(vv).astype(np.float32), "VH": how(vh).astype(np.float32)}
    said = {"time": "20230303T051031", "platform": "S1A", "baseline": None} | said
    return Image(bands, "RTC", **said)


def tiff(path: Path, image: Image, pixels, res=10.0, names=None, tags=None, driver="GTiff", mask=None, **profile):
    """One raster of (C, h, w) or (h, w) at the image's place."""
    pixels = np.atleast_3d(pixels) if np.ndim(pixels) == 3 else np.asarray(pixels)[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": CRS.from_epsg(image.epsg), "transform": Affine(res, 0, image.x, 0, -res, image.y)}
    options = {"QUALITY": 100, "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver=driver, **place, **shape, **options, **profile) as file,
    ):
        file.write(pixels)
        for number, name in enumerate(names or [], 1):
            if name is not None:
                file.set_band_description(number, name)
        if tags:
            file.update_tags(**tags)
        if mask is not None:
            file.write_mask(mask)
    return path


def xml(image: Image) -> str:
    """The part of MTD_MSIL2A.xml or MTD_MSIL1C.xml that is read, as ESA writes it."""
    name, unit = ("BOA", "BOA_QUANTIFICATION_VALUE") if image.level == "L2A" else ("RADIO", "QUANTIFICATION_VALUE")
    offsets = "".join(f'<{name}_ADD_OFFSET band_id="{i}">-1000</{name}_ADD_OFFSET>' for i in range(13))
    listed = f"<{name}_ADD_OFFSET_VALUES_LIST>{offsets}</{name}_ADD_OFFSET_VALUES_LIST>"
    said = image.baseline or 0
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd"><n1:General_Info>
<Product_Info><PRODUCT_START_TIME>2023-03-02T09:50:29.024Z</PRODUCT_START_TIME>
<PRODUCT_URI>{image.product}.SAFE</PRODUCT_URI><PROCESSING_LEVEL>Level-{image.level[1:]}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>{said // 100:02d}.{said % 100:02d}</PROCESSING_BASELINE>
<Datatake><SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME>
<SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION></Datatake></Product_Info>
<Product_Image_Characteristics><{unit} unit="none">10000</{unit}>{listed if said >= 400 else ""}
</Product_Image_Characteristics></n1:General_Info>
<n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>12.5</Cloud_Coverage_Assessment></n1:Quality_Indicators_Info>
</n1:Level-2A_User_Product>"""


def safe(root: Path, image: Image, resolutions=(10, 20, 60), metadata=True, zipped=False, driver="JP2OpenJPEG") -> Path:
    """A SAFE folder of ESA; L2A has a folder per resolution with the finer bands in it again."""
    product = root / f"{image.product}.SAFE"
    granule = product / "GRANULE" / f"{image.level}_T{image.tile}_A031263_{image.time}"
    for band in image.bands:
        if image.level == "L1C":
            path = granule / "IMG_DATA" / f"{image.stem}_{band}.jp2"
            tiff(path, image, image.bands[band], image.res(band), driver=driver)
            continue
        for res in (r for r in resolutions if r >= RES[band]):
            step = res // RES[band]
            path = granule / "IMG_DATA" / f"R{res}m" / f"{image.stem}_{band}_{res}m.jp2"
            tiff(path, image, image.bands[band][::step, ::step], res, driver=driver)
    if image.level == "L2A":
        scl = np.full((image.size // 2,) * 2, 4, np.uint8)
        tiff(granule / "IMG_DATA/R20m" / f"{image.stem}_SCL_20m.jp2", image, scl, 20, driver=driver)
        tiff(granule / "QI_DATA/MSK_CLDPRB_20m.jp2", image, scl, 20, driver=driver)
        tiff(granule / "IMG_DATA/R10m" / f"{image.stem}_TCI_10m.jp2", image, np.stack([scl] * 3), 20, driver=driver)
    if metadata:
        (product / f"MTD_MSI{image.level}.xml").write_text(xml(image))
    if zipped:
        with zipfile.ZipFile(f"{product}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(product.rglob("*")):
                file.write(path, path.relative_to(root))
        shutil.rmtree(product)
        return Path(f"{product}.zip")
    return product


def cdse_cog(root: Path, image: Image) -> Path:
    """COGs of CDSE: SAFE's names, one folder."""
    folder = root / (image.product if image.baseline else "download")
    for band in image.bands:
        suffix = f"_{RES[band]}m" if image.level == "L2A" else ""
        tiff(folder / f"{image.stem}_{band}{suffix}.tif", image, image.bands[band], image.res(band))
    return folder


def earth_search(root: Path, image: Image, common=True) -> Path:
    """Assets of Earth Search's item in a folder of its name: red.tif, nir08.tif, or B04.tif."""
    folder = root / f"{image.platform}_{image.tile}_{image.time[:8]}_0_{image.level}"
    for band in image.bands:
        name = COMMON[band] if common else band
        tiff(
            folder / f"{name}.tif", image, image.bands[band], image.res(band), tiled=True, blockxsize=64, blockysize=64
        )
    tiff(folder / "scl.tif", image, np.full((image.size // 2,) * 2, 4, np.uint8), 20)
    tiff(folder / "visual.tif", image, np.zeros((3, image.size, image.size), np.uint8))
    if image.baseline:
        properties = {
            "s2:processing_baseline": f"{image.baseline // 100:02d}.{image.baseline % 100:02d}",
            "earthsearch:boa_offset_applied": bool(image.applied), "s2:product_uri": f"{image.product}.SAFE",
            "datetime": "2023-03-02T09:50:29.024Z", "eo:cloud_cover": 12.5,
        }  # fmt: skip
        (folder / f"{folder.name}.json").write_text(json.dumps({"id": folder.name, "properties": properties}))
    return folder


def planetary_computer(root: Path, image: Image) -> Path:
    """Assets of the Planetary Computer's sentinel-2-l2a: SAFE's folders with COGs, the offset still in."""
    folder = root / f"{image.product}.SAFE" / "GRANULE" / f"L2A_T{image.tile}_A031263_{image.time}" / "IMG_DATA"
    for band, res in ((band, RES[band]) for band in image.bands):
        tiff(folder / f"R{res}m" / f"{image.stem}_{band}_{res}m.tif", image, image.bands[band], res)
    return root / f"{image.product}.SAFE"


def earth_engine(root: Path, image: Image, prefix="", harmonized=False) -> Path:
    """An export of COPERNICUS/S2_SR(_HARMONIZED) or S2(_HARMONIZED): one stack with B1 ... B12, AOT, WVP, SCL, QA60."""
    order = [b for b in COMMON if b in image.bands]
    extra = ["AOT", "WVP", "SCL", "QA60"] if image.level == "L2A" else ["QA60"]
    pixels = [*map(image.at_ten, order), *[np.full((image.size,) * 2, 4, np.uint16)] * len(extra)]
    names = [prefix + b.replace("B0", "B") for b in order] + [prefix + name for name in extra]
    kind = {"L2A": "S2_SR", "L1C": "S2"}[image.level] + ("_HARMONIZED" if harmonized else "")
    name = f"{image.product}_{kind}.tif" if image.baseline else f"{kind}_{image.time}.tif"
    return tiff(root / name, image, np.stack(pixels), names=names)


def stack(root: Path, image: Image, order=None, names=None, name=None, **how) -> Path:
    """A multi-band GeoTIFF of one's own."""
    order = order or [b for b in COMMON if b in image.bands] or list(image.bands)
    texts = [names(b) if callable(names) else b for b in order] if names else None
    stem = name or (image.product if image.baseline else f"site_{image.time}")
    return tiff(root / f"{stem}.tif", image, np.stack([image.at_ten(b) for b in order]), names=texts, **how)


def openeo(root: Path, images: list[Image] | Image, name="openEO.nc", bands_dim=False, fmt="netcdf") -> Path:
    """A cube of openEO in NetCDF or Zarr: dims t, (bands,) y, x, and a variable crs."""
    images = [images] if isinstance(images, Image) else images
    first, size = images[0], images[0].size
    times = [np.datetime64(f"{i.time[:4]}-{i.time[4:6]}-{i.time[6:8]}T00:00:00", "ns") for i in images]
    coords = {"t": times, "y": first.y - 10 * (np.arange(size) + 0.5), "x": first.x + 10 * (np.arange(size) + 0.5)}
    cube = {band: np.stack([i.at_ten(band) for i in images]) for band in first.bands}
    said = {"grid_mapping": "crs"} | first.more
    if bands_dim:
        held = {"var": (("t", "bands", "y", "x"), np.stack(list(cube.values()), 1), said)}
        coords["bands"] = list(cube)
    else:
        held = {band: (("t", "y", "x"), values, said) for band, values in cube.items()}
    wkt = CRS.from_epsg(first.epsg).to_wkt()
    data = xr.Dataset(held, coords, {"Conventions": "CF-1.9", "institution": "openEO platform"})
    data["crs"] = ((), 0, {"crs_wkt": wkt, "spatial_ref": wkt})
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if fmt == "zarr":
        data.to_zarr(path, consolidated=True)
    else:
        data.to_netcdf(path, engine="h5netcdf")
    return path


def eopf(root: Path, image: Image, said=True, version=2) -> Path:
    """ESA's EOPF product: Zarr with measurements/reflectance/r10m/b02, scale and offset in attributes."""
    path = root / f"{image.product}.zarr"
    told = image.baseline or 0
    number = {"scale_factor": 1e-4, "add_offset": -0.1 if told >= 400 else 0.0, "fill_value": 0} if said else {}
    properties = {
        "platform": "sentinel-2b", "datetime": "2023-03-02T09:50:29.024Z", "processing:level": image.level,
        "product:type": f"S02MSI{image.level}", "proj:code": f"EPSG:{image.epsg}", "eo:cloud_cover": 12.5,
        "sat:orbit_state": "descending",
    }  # fmt: skip
    if image.baseline:
        properties["processing:baseline"] = f"{told // 100:02d}.{told % 100:02d}"
    attributes = {"stac_discovery": {"id": image.product, "properties": properties}, "other_metadata": {}}
    how = {"zarr_format": version, "consolidated": version == 2}
    xr.Dataset(attrs=attributes).to_zarr(path, mode="w", **how)
    for res in (10, 20, 60):
        held = [band for band in image.bands if RES[band] == res]
        size = image.size * 10 // res
        coords = {"y": image.y - res * (np.arange(size) + 0.5), "x": image.x + res * (np.arange(size) + 0.5)}
        data = xr.Dataset({b.lower(): (("y", "x"), image.bands[b], dict(number)) for b in held}, coords)
        data.to_zarr(path, group=f"measurements/reflectance/r{res}m", mode="a", **how)
        if res == 60:
            mask = xr.Dataset({b.lower(): (("y", "x"), np.zeros((size, size), np.uint8)) for b in held}, coords)
            mask.to_zarr(path, group="conditions/mask/detector_footprint/r60m", mode="a", **how)
    return path


def without(image: Image, *bands: str) -> Image:
    """The image with fewer bands."""
    return replace(image, bands={b: x for b, x in image.bands.items() if b not in bands})


def pc_rtc(root: Path, image: Image) -> Path:
    """The Planetary Computer's sentinel-1-rtc: measurement/iw-vv.rtc.tiff, linear gamma0, nodata -32768."""
    folder = root / f"S1A_IW_GRDH_1SDV_{image.time}_20230303T051056_047476_05B31E_rtc" / "measurement"
    for band, pixels in image.bands.items():
        tiff(folder / f"iw-{band.lower()}.rtc.tiff", image, pixels, nodata=-32768)
    return folder.parent


def asf(root: Path, image: Image, lower=False, scale="p") -> Path:
    """ASF HyP3's RTC: the unit in the name (p, d or a)."""
    name = f"{image.platform}_IW_{image.time}_DVP_RTC10_G_g{scale}uned_A0BC"
    for band, pixels in image.bands.items():
        tiff(root / name / f"{name}_{band.lower() if lower else band}.tif", image, pixels, nodata=0)
    tiff(root / name / f"{name}_inc_map.tif", image, np.ones((image.size,) * 2, np.float32))
    tiff(root / name / f"{name}_ls_map.tif", image, np.ones((image.size,) * 2, np.uint8))
    return root / name


def opera(root: Path, image: Image, bursts=2) -> Path:
    """OPERA RTC-S1: a file per burst and polarization; neighbors overlap by a tenth, no data beyond their edges."""
    edges = np.linspace(0, image.size, bursts + 1).astype(int)
    for number in range(bursts):
        start, stop = max(edges[number] - 6, 0), min(edges[number + 1] + 6, image.size)
        time = f"{image.time[:-2]}{int(image.time[-2:]) + 3 * number:02d}Z"
        name = f"OPERA_L2_RTC-S1_T069-{147170 + number}-IW1_{time}_20230303T170909Z_S1A_30_v1.0"
        for band, pixels in image.bands.items():
            here = replace(image, y=image.y - 10 * start)
            tiff(root / f"{name}_{band}.tif", here, pixels[start:stop], nodata=np.nan)
        tiff(root / f"{name}_mask.tif", here, np.zeros((stop - start, image.size), np.uint8), nodata=255)
    return root


def gee_grd(root: Path, image: Image) -> Path:
    """COPERNICUS/S1_GRD of Earth Engine: VV, VH, angle, in dB."""
    name = f"S1A_IW_GRDH_1SDV_{image.time}_20230303T051056_047476_05B31E_6D5C.tif"
    angle = np.full((image.size,) * 2, 38, np.float32)
    return tiff(root / name, image, np.stack([*image.bands.values(), angle]), names=[*image.bands, "angle"])


def snap(root: Path, image: Image, names=("Sigma0_VH_db", "Sigma0_VV_db")) -> Path:
    """SNAP's GeoTIFF with two bands, VH first."""
    pixels = np.stack([image.bands["VH"], image.bands["VV"]])
    return tiff(root / f"subset_S1A_{image.time}_Orb_NR_Cal_TC.tif", image, pixels, names=names)


#: Writers of one optical image, by provider.
OPTICAL_WRITERS = {
    "safe": safe, "cdse": cdse_cog, "earth_search": earth_search, "planetary_computer": planetary_computer,
    "earth_engine": earth_engine, "openeo": openeo, "eopf": eopf, "stack": stack,
}  # fmt: skip
#: Writers of one radar image.
RADAR_WRITERS = {"planetary_computer": pc_rtc, "asf": asf, "opera": opera, "earth_engine": gee_grd, "snap": snap}


def native_groups(image: Image, modality: str, at_ten: bool = False) -> dict[int, np.ndarray]:
    """The image's pixels as a native sample has them: (C, h, w) by resolution."""
    read = image.at_ten if at_ten else image.bands.__getitem__
    return {r: np.stack([read(b) for b in bands]) for r, bands in MODALITIES[modality].native.items()}
