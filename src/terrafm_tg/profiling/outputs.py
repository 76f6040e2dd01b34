"""Files that a profile is to be written to, checked before it is measured."""

from pathlib import Path
from tempfile import TemporaryFile

from terrafm_tg.errors import TerraFMError


def demand_files(json: Path | None, figure: Path | None = None) -> None:
    """Makes the files' folders, and sees to it that the files can be written.

    Args:
        json: File for the numbers, if any.
        figure: File for a picture, if any.

    Raises:
        TerraFMError: If a file cannot be written, or the picture's format is unknown.
    """
    if figure is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if figure.suffix and figure.suffix[1:].lower() not in known:
            raise TerraFMError(f"{figure} is of no known format: let it end in one of .{', .'.join(known)}.")
    for path in filter(None, (json, figure)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path.parent):
                reason = "it is a folder" if path.is_dir() else None
        except OSError as error:
            reason = error.strerror
        if reason:
            raise TerraFMError(f"{path} cannot be written ({reason}): give a file in a folder of yours.")
