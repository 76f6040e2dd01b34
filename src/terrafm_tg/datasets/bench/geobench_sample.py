"""One sample of GEO-Bench: an HDF5 file with one dataset per band, and a pickle that names them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torchgeo.datasets.utils import lazy_import

from terrafm_tg.errors import TerraFMError

from .geobench_pickle import PickleError, load_text

if TYPE_CHECKING:
    import h5py


@contextmanager
def open_sample(path: Path) -> "Iterator[tuple[h5py.File, dict[str, Any]]]":
    """The open file and its description: ``bands_order``, ``label`` unless it is a mask, and attributes per band.

    The file is opened for one sample at a time, so that loader workers share no handle.

    Raises:
        TerraFMError: If the file is damaged, now or while it is read, or its pickle is not one of GEO-Bench.
    """
    try:
        # Without a lock, which many network file systems refuse; nothing is written.
        with lazy_import("h5py").File(path, "r", locking=False) as file:
            described = load_text(str(file.attrs["pickle"]))
            if not isinstance(described, dict):
                raise PickleError("it describes no bands")
            yield file, described
    except PickleError as error:
        raise TerraFMError(
            f"{path} has a pickle that was not read, because {error}: fetch the file again."
        ) from error
    except TerraFMError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TerraFMError(
            f"{path} cannot be read ({error}): it is damaged or incomplete, fetch it again."
        ) from error


def stored_bands(file: "h5py.File", described: dict[str, Any]) -> dict[str, str]:
    """The dataset of each band by its plain name, in the writer's order; of several dates the first.

    A dated band's dataset is called ``<name>_<date>``. GEO-Bench's own tools read samples of one date only; of more,
    published evaluations took the first dataset of a name.

    Args:
        file: The open file, whose own order is alphabetical.
        described: Its description.
    """
    order = described.get("bands_order", list(file))
    bands: dict[str, str] = {}
    for dataset in order if isinstance(order, list) else ():
        about = described.get(dataset)
        date = about.get("date") if isinstance(about, dict) else None
        bands.setdefault(str(dataset) if date is None else str(dataset).rpartition("_")[0], str(dataset))
    return bands


def read_channels(file: "h5py.File", datasets: Sequence[str]) -> np.ndarray:
    """Those datasets as float32 (C, H, W).

    Raises:
        TerraFMError: If they differ in size, or are no images.
    """
    channels = [np.asarray(file[dataset][()], np.float32) for dataset in datasets]
    shapes = {channel.shape for channel in channels}
    if len(shapes) > 1 or channels[0].ndim != 2:
        raise TerraFMError(
            f"{file.filename} has bands of {', '.join(map(str, sorted(shapes)))}, but one height and width were "
            "expected: fetch the file again."
        )
    return np.stack(channels)


def read_label(described: dict[str, Any]) -> np.ndarray:
    """The class, or a 0 or 1 for each class of several labels; an empty array where there is none."""
    label = described.get("label", ())
    value = np.asarray(getattr(label, "value", label))
    return value if value.dtype.kind in "biu" else np.empty(0)
