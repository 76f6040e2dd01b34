"""Which Sentinel band another sensor's band is nearest to, and what models that go by wavelength want to know."""

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC

#: Centre and width of each band in nanometres, as Copernicus-Bench gives them to the models that take them. Radar has
#: none that would fit in: these are the numbers by which Copernicus-FM knows C-band.
WAVELENGTHS: dict[str, tuple[float, float]] = {
    "B01": (440, 20), "B02": (490, 65), "B03": (560, 35), "B04": (665, 30), "B05": (705, 15), "B06": (740, 15),
    "B07": (783, 20), "B08": (842, 115), "B8A": (860, 20), "B09": (940, 20), "B10": (1370, 30),
    "B11": (1610, 90), "B12": (2190, 180), "VV": (5e7, 1e9), "VH": (5e7, 1e9),
}  # fmt: skip

#: Red, green and blue by Sentinel-2's names, in the order of every RGB model.
RGB = ("B04", "B03", "B02")

#: The band that stands in for one that a Sentinel-2 product lacks (Galileo's protocol for So2Sat).
NEIGHBOURS = {"B01": "B02", "B09": "B8A"}

#: Band names of other sensors, in lower case, and the Sentinel-2 band nearest in wavelength.
_COLOURS = {
    "coastal": "B01", "coastal_aerosol": "B01", "ultra_blue": "B01",
    "blue": "B02", "b": "B02", "green": "B03", "g": "B03", "red": "B04", "r": "B04",
    "nir": "B08", "near-ir": "B08", "n": "B08",
    "swir1": "B11", "swir_1": "B11", "swir2": "B12", "swir_2": "B12",
}  # fmt: skip
#: Landsat-8's near infrared (851 to 879 nm) is Sentinel-2's narrow one; its bands also go by number.
_LANDSAT8 = _COLOURS | {"nir": "B8A", "n": "B8A"}
_LANDSAT8 |= {"b1": "B01", "b2": "B02", "b3": "B03", "b4": "B04", "b5": "B8A", "b6": "B11", "b7": "B12"}
_LANDSAT8 |= {f"sr_{band}": known for band, known in _LANDSAT8.items() if band[-1].isdigit()}
#: Landsat 4 to 7 number their bands otherwise.
_LANDSAT7 = {"b1": "B02", "b2": "B03", "b3": "B04", "b4": "B8A", "b5": "B11", "b7": "B12"}
_LANDSAT7 |= {f"sr_{band}": known for band, known in _LANDSAT7.items()}

_SENSORS = {"landsat8": _LANDSAT8, "landsat7": _LANDSAT7, "landsat5": _LANDSAT7}


def is_radar(sensor: str) -> bool:
    """Whether a sensor of a task is a radar, whose values are decibels."""
    return sensor == S1RTC.name


def is_sentinel2(sensor: str) -> bool:
    """Whether a sensor of a task is Sentinel-2, whose values are digital numbers."""
    return sensor in MODALITIES and not is_radar(sensor)


def equivalent(sensor: str, band: str) -> str | None:
    """The Sentinel band that a band is, or is nearest to.

    Args:
        sensor: Key of the task's ``sensors``: a modality, ``"landsat8"``, or any other (red, green, blue and infrared
            are then known by name).
        band: Its name in the task.

    Returns:
        "B02", "VV" and so on; None for a band that none resembles (a height model, a cloud mask, thermal infrared).
    """
    if sensor in MODALITIES:
        modality = MODALITIES[sensor]
        try:
            return modality.channel_names(modality.stem_columns((band,)))[0]
        except TerraFMError:
            return band.upper() if band.upper() in modality.extra else None
    return _SENSORS.get(sensor, _COLOURS).get(band.lower())
