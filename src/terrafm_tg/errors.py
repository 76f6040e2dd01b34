"""Errors that a person can act on: one sentence with the value met, what was expected, and the fix."""

import re


class TerraFMError(ValueError):
    """A wrong setting, path, band, modality, shape or checkpoint; the command line prints it without a traceback."""

    def __str__(self) -> str:
        """The sentence alone, also where a worker of torch's DataLoader met it and sent its traceback as the text.

        Control characters, which names in it may hold, are escaped: they neither break the line nor steer a terminal.
        """
        text = super().__str__()
        named = f"{type(self).__module__}.{type(self).__qualname__}: "
        text = text.rpartition(named)[2].strip() if text.startswith("Caught ") else text
        return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)


class UnfitTileError(Exception):
    """A tile's stored pixels differ in shape or type from the arrays that they were to be read into.

    No user meets it: whoever gave the arrays reads the tile into ones of its own.
    """


class DamagedTileError(TerraFMError):
    """One tile cannot be used (truncated file, missing band, NaN, only nodata); a long run replaces that sample.

    Args:
        name: What to call the tile in a log, such as ``"897U_171L/2 s2l2a"``.
        reason: What is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Tile {name} cannot be used: {reason.rstrip('.')}.")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)
