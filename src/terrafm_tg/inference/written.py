"""Products of a run: maps or a table, with previews, what describes them, and the reduction they share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from terrafm_tg.utils.progress import with_bar

from .preview import write_preview
from .products import Reduction, write_cog
from .run import MapWork
from .tables import Rows


def write_maps(
    works: Sequence[MapWork], out: Path, kind: str, common: Mapping[str, Any], dtype: str, pca: int | Reduction | None,
    console: Console,
) -> list[Path]:  # fmt: skip
    """Writes the maps of a run, each whole or not at all; those that are there stay.

    Args:
        works: Finished maps.
        out: The file of a single one, or a folder.
        kind: ``cog`` or ``zarr``.
        common: What all are made of.
        dtype: Type of the stored numbers.
        pca: Principal components to keep, or an earlier reduction.
        console: To draw progress on.

    Returns:
        What was written.
    """
    reduction = Reduction.fit_maps([work.parts for work in works], dtype, pca)
    paths = []
    for work in with_bar(works, f"Writing {kind}", shown=not console.quiet):
        path = out if out.suffix else out / f"{work.image.name}.tif"
        write_cog(work.parts, path, reduction)
        write_preview(work.preview, path.with_suffix(".preview.tif"))
        paths.append(path)
    return paths


def write_rows(rows: Rows, out: Path, common: Mapping[str, Any], dtype: str, pca: int | Reduction | None) -> list[Path]:
    """Writes the table of a run."""
    raise NotImplementedError
