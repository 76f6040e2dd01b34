"""What a command prints where it refuses to run."""

from functools import partial

import pytest

from terrafm_tg.cli.main import main
from terrafm_tg.errors import DamagedTileError, TerraFMError

#: ``with refused(match=...)``: a sentence of ours.
refused = partial(pytest.raises, TerraFMError)
#: ``with damaged(match=...)``: a tile that cannot be used.
damaged = partial(pytest.raises, DamagedTileError)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is wrong, behind "terrafm: error:"; neither a traceback nor a page of usage comes with it."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr().err
    assert stop.value.code, printed
    assert "Traceback" not in printed
    assert "usage:" not in printed
    return printed[printed.index("terrafm: error: ") :].strip()
