import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_terrafm import trainer
from torch.utils.data import DataLoader

from terrafm_tg.callbacks import CollapseMonitor
from terrafm_tg.errors import TerraFMError

K = 1024
HEALTHY = {"loss": 6.5, "kl": 0.1, "teacher_entropy": 6.4, "embedding_std": 0.3, "effective_rank": 4.0}
#: What two runs of 300 steps logged, which learnt well, while they were near ln K = 7.62.
SLOW = {"loss": 7.607, "kl": 0.0059, "teacher_entropy": 7.6057, "embedding_std": 0.2633, "effective_rank": 1.7}


class Scripted(LightningModule):
    """Logs what it is told, as TerraFM does."""

    def __init__(self, script: list[dict[str, float]], prototypes: int = K) -> None:
        super().__init__()
        self.save_hyperparameters({"head": {"prototypes": prototypes}})
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.script = script

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        for name, value in self.script[min(self.global_step, len(self.script) - 1)].items():
            self.log(f"train/{name}", torch.tensor(value))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(folder: Path, script: list[dict[str, float]], *more: Callback, prototypes: int = K, **settings: Any) -> int:
    monitor = CollapseMonitor(**({"every_n_steps": 1, "grace_steps": 5, "patience": 2} | settings))
    fit = trainer(folder, monitor, *more, enable_checkpointing=bool(more))
    fit.fit(Scripted(script, prototypes), DataLoader([0] * 20))
    return fit.global_step


def test_a_healthy_run_is_left_alone(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert run(tmp_path, [HEALTHY], action="stop") == 20
    assert run(tmp_path, [SLOW], action="stop", prototypes=2048) == 20
    assert not [w for w in recwarn if "At step" in str(w.message)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss": math.log(K), "kl": 1e-4, "teacher_entropy": math.log(K) - 1e-4}, "sits at ln K = 6.93"),
        ({"teacher_entropy": 1e-4}, "the same prototype"),
        ({"embedding_std": 0.001}, "become one point"),
        ({"effective_rank": 1.001}, "lie on one line"),
    ],
)
def test_collapse_is_said_in_words(tmp_path: Path, values: dict[str, float], says: str) -> None:
    with pytest.raises(TerraFMError, match=f"At step 6 .*{says}.*: .*lower"):
        run(tmp_path, [HEALTHY | values], action="stop")
    with pytest.warns(UserWarning, match=says):
        assert run(tmp_path, [HEALTHY | values]) == 20


def test_a_loss_of_dimensions_is_said_in_words_and_stops_nothing(tmp_path: Path) -> None:
    script = [HEALTHY | {"effective_rank": 9.5}] * 8 + [HEALTHY | {"effective_rank": 3.1}]
    with pytest.warns(UserWarning, match=r"At step 10 .* vary in 3\.1 directions, of 9\.5 at the beginning"):
        assert run(tmp_path, script, action="stop") == 20
    monitor = CollapseMonitor()
    monitor.load_state_dict({"beginning": 9.5})  # a resumed run compares with where the first one began
    assert "dimensions" in monitor.symptoms({"train/effective_rank": 3.1}, K)
    assert "dimensions" not in monitor.symptoms({"train/effective_rank": 3.2}, K)


def test_a_symptom_that_passes_is_not_collapse(tmp_path: Path) -> None:
    sick = HEALTHY | {"embedding_std": 0.001}
    assert run(tmp_path, [sick, HEALTHY] * 10, action="stop") == 20
    assert run(tmp_path, [sick] * 5 + [HEALTHY], action="stop") == 20


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_said_at_once(tmp_path: Path, value: float) -> None:
    with pytest.raises(TerraFMError, match=r"At step 3 the loss is (nan|inf)"):
        run(tmp_path, [HEALTHY] * 2 + [{"loss": value}], action="warn")


def test_nan_replaces_no_checkpoint(tmp_path: Path) -> None:
    """Also where the monitor does not look at that step."""
    save = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(TerraFMError, match="no checkpoint was written"):
        run(tmp_path, [HEALTHY] * 3 + [{"loss": math.nan}], save, every_n_steps=100)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
