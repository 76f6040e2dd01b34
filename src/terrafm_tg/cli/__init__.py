"""The ``terrafm`` command: one short file per subcommand."""

from .main import main

__all__ = ["main"]
