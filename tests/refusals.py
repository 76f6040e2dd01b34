"""What a command prints where it refuses to run."""

from functools import partial
from pathlib import Path

import pytest

from terrafm_tg.cli.main import main
from terrafm_tg.errors import DamagedTileError, TerraFMError

CONF = Path(__file__).resolve().parents[1] / "conf"
#: Options of a tiny run on tiles in memory.
IN_MEMORY = [
    *(f"--config={CONF / name}.yaml" for name in ("pretrain", "size/tiny", "../benchmarks/memory", "hardware/cpu")),
    *("--model.depth=2", "--model.crops.global_size=48", "--model.crops.local_size=32", "--model.crops.local_crops=2"),
    *("--model.head.prototypes=256", "--model.head.hidden_dim=64", "--data.tile_size=96", "--data.batch_size=4"),
]
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
