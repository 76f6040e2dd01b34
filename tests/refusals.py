"""What a command prints where it refuses to run."""

import pytest

from terrafm_tg.cli.main import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is wrong, behind "terrafm: error:"; neither a traceback nor a page of usage comes with it."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr().err
    assert stop.value.code, printed
    assert "Traceback" not in printed
    assert "usage:" not in printed
    return printed[printed.index("terrafm: error: ") :].strip()
