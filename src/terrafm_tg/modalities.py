"""The three modalities of TerraFM: bands, native resolution, unit, nodata and statistics.

The one source of truth for the rest of the package. Means and deviations are those of the first author's pull request
to TerraTorch (#947): decibels for radar, digital numbers (reflectance x 10,000, no baseline offset) for optics.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import TerraFMError

#: Resolutions of Sentinel-2 bands in meters; Sentinel-1 RTC has 10 m only.
RESOLUTIONS = (10, 20, 60)


@dataclass(frozen=True)
class Modality:
    """One sensor product.

    Args:
        name: The key in samples (``image_<name>``) and in calls (``modality=<name>``).
        title: What a figure or a message calls it.
        stem: The name's part in the published state dict (``conv2d_<stem>``, ``<stem>_embed``).
        bands: Band names, in the order of the stem's input channels.
        resolutions: Native ground sampling distance of each band in meters.
        unit: Unit of the statistics and of what the encoder's normalization expects.
        nodata: Value of missing pixels in the stored files.
        mean: Training mean per band, in ``unit``.
        std: Training standard deviation per band, in ``unit``.
        extra: Bands that files of the product may hold and the stem has no kernel for.
    """

    name: str
    title: str
    stem: str
    bands: tuple[str, ...]
    resolutions: tuple[int, ...]
    unit: str
    nodata: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    extra: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Key of the 10 m image in a sample."""
        return f"image_{self.name}"

    @property
    def native(self) -> dict[int, tuple[str, ...]]:
        """Bands per native resolution (meters), in stem order: the channels of ``image_<name>_<resolution>m``."""
        pairs = list(zip(self.bands, self.resolutions, strict=True))
        groups = {res: tuple(band for band, r in pairs if r == res) for res in RESOLUTIONS}
        return {res: bands for res, bands in groups.items() if bands}

    def native_key(self, resolution: int) -> str:
        """Key of the native-resolution image of ``resolution`` meters in a sample."""
        return f"{self.key}_{resolution}m"

    @property
    def native_order(self) -> list[int]:
        """Place of each band, in stem order, in the concatenation of the native groups (10, 20, 60 m)."""
        stored = [band for bands in self.native.values() for band in bands]
        return [stored.index(band) for band in self.bands]

    def band_indices(self, bands: Iterable[str]) -> list[int]:
        """Stem channels of ``bands``, any subset in any order; ``B2``, ``b02`` and ``B02`` are the same band.

        Raises:
            TerraFMError: If a band is not of this modality, or named twice.
        """
        names = [canonical(band) for band in bands]
        for name in names:
            if name not in self.bands:
                raise TerraFMError(
                    f"Band {name!r} is not one of {self.name}'s bands ({', '.join(self.bands)}): correct `bands`."
                )
        if len(set(names)) < len(names) or not names:
            raise TerraFMError(
                f"`bands` must name at least one band of {self.name}, and each once, got {', '.join(names) or 'none'}."
            )
        return [self.bands.index(name) for name in names]

    def channel_names(self, columns: Iterable[int | None]) -> tuple[str, ...]:
        """The bands of stem columns, as :meth:`stem_columns` gives them; None is the band of ``extra``."""
        return tuple(self.extra[0] if column is None else self.bands[column] for column in columns)

    def stem_columns(self, bands: Iterable[str]) -> tuple[int | None, ...]:
        """The stem channel of each of ``bands``, None for a band of ``extra``, which is read past.

        Raises:
            TerraFMError: If a band is not of this modality or named twice, or the stem has none of them.
        """
        names = [canonical(band) for band in bands]
        indices = iter(self.band_indices(name for name in names if name not in self.extra))
        return tuple(None if name in self.extra else next(indices) for name in names)


def canonical(band: str) -> str:
    """Spells a band as this package does: upper case, and ``B2`` as ``B02``."""
    name = band.upper()
    return f"B0{name[1]}" if len(name) == 2 and name[0] == "B" and name[1].isdigit() else name


_S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_S2_RESOLUTIONS = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20)
#: The cirrus band: in L1C's 13-band files, and in no stem.
_S2_EXTRA = ("B10",)

S1RTC = Modality(
    name="s1rtc",
    title="Sentinel-1 RTC",
    stem="s1",
    bands=("VV", "VH"),
    resolutions=(10, 10),
    unit="dB",
    nodata=-32768.0,
    mean=(-12.7572, -19.6423),
    std=(5.8491, 5.8516),
)
S2L1C = Modality(
    name="s2l1c",
    title="Sentinel-2 L1C",
    stem="s2_l1c",
    bands=_S2_BANDS,
    resolutions=_S2_RESOLUTIONS,
    unit="DN",
    nodata=0.0,
    mean=(
        2153.94, 1937.191, 1885.8236, 1906.7263, 2096.8369, 2692.8083,
        3015.8569, 2930.3957, 3243.99, 1389.849, 2915.8289, 2186.0514,
    ),
    std=(
        581.6321, 619.9756, 714.7784, 1018.3657, 1021.4312, 1116.4055,
        1265.8559, 1234.6123, 1374.9582, 608.362, 1547.9093, 1336.0316,
    ),
    extra=_S2_EXTRA,
)  # fmt: skip
S2L2A = Modality(
    name="s2l2a",
    title="Sentinel-2 L2A",
    stem="s2_l2a",
    bands=_S2_BANDS,
    resolutions=_S2_RESOLUTIONS,
    unit="DN",
    nodata=0.0,
    mean=(
        1033.9414, 1135.3391, 1382.2553, 1526.9789, 1883.3911, 2516.2726,
        2782.7811, 2829.3833, 2977.2936, 3004.2905, 2832.1983, 2186.6507,
    ),
    std=(
        2761.4226, 807.365, 919.6919, 1221.4198, 1265.8146, 1323.0764,
        1428.7845, 1459.0343, 1497.9797, 1577.071, 1738.6128, 1620.8854,
    ),
    extra=_S2_EXTRA,
)  # fmt: skip

#: All modalities by name, in the order of the paper.
MODALITIES: dict[str, Modality] = {m.name: m for m in (S1RTC, S2L1C, S2L2A)}


def get_modality(name: str) -> Modality:
    """The modality of that name.

    Raises:
        TerraFMError: If there is none.
    """
    if name not in MODALITIES:
        raise TerraFMError(f"Modality {name!r} is unknown: use one of {', '.join(MODALITIES)}.")
    return MODALITIES[name]


def get_modalities(names: Sequence[str] | None = None) -> tuple[Modality, ...]:
    """The modalities of those names in the paper's order; all of them where ``names`` is None.

    Raises:
        TerraFMError: If a name is unknown, or none is given.
    """
    chosen = [get_modality(name) for name in (MODALITIES if names is None else names)]
    if not chosen:
        raise TerraFMError(f"No modality given: name at least one of {', '.join(MODALITIES)}.")
    return tuple(m for m in MODALITIES.values() if m in chosen)
