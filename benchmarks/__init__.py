"""Measurements of our own speed, run by ``make bench``."""

import sys
from collections.abc import Callable

from jsonargparse import auto_cli

from terrafm_tg.errors import TerraFMError


def command(measure: Callable[..., object]) -> None:
    """Runs a measurement with the options of the command line, which are its parameters.

    Args:
        measure: The measurement, which prints what it finds.
    """
    try:
        auto_cli(measure, as_positional=True)
    except TerraFMError as error:
        sys.exit(f"error: {error}")
