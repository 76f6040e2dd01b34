"""Statistics of normalization other than the published ones: those of a run's own data, as its encoder keeps them."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality, get_modality
from terrafm_tg.utils.tensor_files import load_archive, read_metadata_of

#: ``mean`` and ``std`` by modality, per band in stem order and the modality's unit; others have the published ones.
type Statistics = Mapping[str, Mapping[str, Sequence[float]]]

_MOST = 1 << 20  # bytes of a file of statistics
_HELP = "give a file of `terrafm stats`, an encoder that keeps its own, or `mean` and `std` by modality"


def find_statistics(source: Statistics | str | os.PathLike[str] | None) -> dict[str, dict[str, list[float]]] | None:
    """Reads statistics, from wherever they are kept.

    Args:
        source: The statistics themselves; or a file that has them: one of ``terrafm stats`` (``.json``), an exported
            encoder or a checkpoint, which keep those that they were trained with.

    Returns:
        ``mean`` and ``std`` by modality as plain lists; None for the published ones.

    Raises:
        TerraFMError: If the file cannot be read, a modality is unknown, or numbers are none that could be.
    """
    if source is None:
        return None
    where = "`statistics`" if isinstance(source, Mapping) else str(source)
    content: Any = source if isinstance(source, Mapping) else _read(Path(source))
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise TerraFMError(f"{where} holds no statistics: {_HELP}.")
    found = {name: _checked(where, name, own) for name, own in content.items() if isinstance(own, Mapping)}
    if not found:
        raise TerraFMError(f"{where} holds statistics of no modality: {_HELP}.")
    return found


def with_statistics(modality: Modality, statistics: Statistics | None) -> Modality:
    """Returns a modality with the statistics that are given for it; with the published ones where there are none."""
    if statistics is None or modality.name not in statistics:
        return modality
    own = statistics[modality.name]
    return replace(modality, mean=tuple(own["mean"]), std=tuple(own["std"]))


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".json":
            if path.stat().st_size > _MOST:
                raise ValueError("it is too large")
            return json.loads(path.read_bytes())
        if path.suffix == ".safetensors":
            return json.loads(read_metadata_of(path).get("statistics", "null"))
        content = load_archive(path)
        settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
        return settings.get("statistics") if isinstance(settings, Mapping) else None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, TerraFMError):
            raise
        raise TerraFMError(f"The statistics in {path} cannot be read ({error}): {_HELP}.") from error


def _checked(where: str, name: object, own: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns the mean and standard deviation of a modality, one of each for each band."""
    modality = get_modality(str(name))
    numbers = {}
    for key in ("mean", "std"):
        values: Any = own.get(key)
        values = values.tolist() if hasattr(values, "tolist") else values
        fits = isinstance(values, list | tuple) and len(values) == len(modality.bands)
        fits = fits and all(type(x) in (int, float) and math.isfinite(x) and (key == "mean" or x > 0) for x in values)
        if not fits:
            raise TerraFMError(
                f"{where} has {str(values)[:80]} as `{key}` of {modality.name}: expected {len(modality.bands)} numbers"
                f"{' above 0' if key == 'std' else ''}, for {', '.join(modality.bands)}."
            )
        numbers[key] = [float(x) for x in values]
    return numbers
