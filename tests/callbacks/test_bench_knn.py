"""BenchKNN in a real Trainer: the scores of `terrafm bench`, on one rank and on two."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from forked_ranks import be_rank
from lightning.pytorch import LightningModule
from tiny_terrafm import trainer
from torch import nn
from torch.utils.data import DataLoader

from processes import free_port, start
from terrafm_tg.callbacks import BenchKNN
from terrafm_tg.cli.main import main
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder

NAMES = ["m-eurosat", "m-so2sat", "BigEarthNet-S1"]


class Task(LightningModule):
    """Trains next to nothing; its teacher changes by a little in every epoch."""

    def __init__(self, name: str = "teacher", encoder: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        setattr(self, name, build_encoder("terrafm_nano", depth=2) if encoder is None else encoder)
        self.head = nn.Linear(1, 1)
        self.drawn: list[float] = []
        self.scores: list[dict[str, float]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.drawn.append(torch.rand(()).item())
        return self.head(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.head.parameters(), 0.1)


def fit(task: Task, folder: Path, epochs: int = 1, ranks: int = 1, **settings: Any) -> dict[str, float]:
    """What BenchKNN logged last; without datasets it is left out."""
    callbacks = [BenchKNN(**({"root": folder, "size": 32} | settings))] if settings else []
    share = {"strategy": "ddp" if ranks > 1 else "auto", "devices": ranks, "use_distributed_sampler": True}
    run = trainer(folder, *callbacks, max_epochs=epochs, **share)
    run.fit(task, DataLoader(torch.rand(8, 1), batch_size=4))
    return {name: value.item() for name, value in run.callback_metrics.items() if "bench" in name}


@pytest.fixture(scope="module")
def expected(benchmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What `terrafm bench` gives for the same encoder, on the test split."""
    out = tmp_path_factory.mktemp("out")
    torch.save(Task().teacher.state_dict(), out / "teacher.pth")
    main([
        "bench", f"--root={benchmarks}", f"--out={out}", "--num_workers=0", "--device=cpu",
        f"--models=[{{model: terrafm_nano, weights: '{out / 'teacher.pth'}', size: 32}}]", f"--datasets={NAMES}",
    ])  # fmt: skip
    table = pd.read_parquet(out / "results.parquet")
    scores = table[table.headline & (table.average == "true")].set_index("dataset")
    assert set(scores.index) == set(NAMES)
    return {f"bench/{name}/knn_{row.metric}": row.score / 100 for name, row in scores.iterrows()}


def test_gives_the_scores_of_the_command(benchmarks: Path, expected: dict[str, float]) -> None:
    found = fit(Task(), benchmarks, datasets=NAMES, split="test")
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(found) == {"bench/m-eurosat/knn_accuracy", "bench/m-so2sat/knn_accuracy", "bench/BigEarthNet-S1/knn_map"}


def test_leaves_training_as_it_is(benchmarks: Path) -> None:
    """The random numbers, the encoder, and epochs that are not its own."""
    with_it, without = Task(), Task()
    torch.manual_seed(1)
    assert fit(with_it, benchmarks, epochs=3, datasets="m-eurosat", every_n_epochs=2)
    torch.manual_seed(1)
    assert not fit(without, benchmarks, epochs=3)
    assert with_it.drawn == without.drawn
    for mine, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not fit(Task(), benchmarks, epochs=1, datasets="m-eurosat", every_n_epochs=2)


def test_sees_the_encoder_of_the_moment(benchmarks: Path) -> None:
    task = Task()
    first = fit(task, benchmarks, datasets="m-so2sat", k=3)
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.zero_()
    assert fit(task, benchmarks, datasets="m-so2sat", k=3) != first


def test_any_module_that_the_command_knows(benchmarks: Path) -> None:
    """A network of timm with a classifier, as TorchGeo's tasks hold it."""
    model = timm.create_model("resnet18", in_chans=3, num_classes=5)
    found = fit(Task("model", model), benchmarks, datasets="m-eurosat", model="timm/resnet18")
    assert 0 <= found["bench/m-eurosat/knn_accuracy"] <= 1


@pytest.mark.parametrize(
    ("settings", "task", "said"),
    [
        ({"datasets": "m-eurosta"}, {}, "m-eurosat"),
        ({"datasets": "m-nz-cattle"}, {}, "masks"),
        ({"datasets": "m-eurosat", "every_n_epochs": 0}, {}, "`every_n_epochs` is 0"),
        ({"datasets": "m-eurosat", "root": "nowhere"}, {}, "nowhere"),
        ({"datasets": "m-eurosat", "encoder": "student"}, {}, "student"),
        ({"datasets": "m-eurosat"}, {"encoder": nn.Linear(1, 1)}, "Linear"),
        ({"datasets": "m-eurosat", "model": "timm/resnet18"}, {}, "TerraFMViT"),
    ],
)
def test_a_mistake_stops_before_training(settings: dict, task: dict, said: str, benchmarks: Path) -> None:
    module = Task(**task)
    with pytest.raises(TerraFMError, match=said):
        fit(module, benchmarks, **settings)
    assert not module.drawn


def _rank(rank: int, port: int, root: str, damaged: str, out: str) -> None:
    """One of two processes: all datasets, then a damaged one."""
    be_rank(rank, 2, port, Path(out) / "log")
    found = fit(Task(), Path(root), ranks=2, datasets=NAMES, split="test")
    try:
        fit(Task(), Path(damaged), ranks=2, datasets="m-eurosat", split="test")
    except TerraFMError as error:
        torch.save((found, str(error)), f"{out}/{rank}.pt")


@pytest.mark.soak
def test_two_ranks_give_the_same(benchmarks: Path, expected: dict[str, float], tmp_path: Path) -> None:
    """The same scores on both; a damaged image stops both."""
    damaged = tmp_path / "damaged"
    shutil.copytree(benchmarks / "classification_v1.0/m-eurosat", damaged / "classification_v1.0/m-eurosat")
    path = sorted(damaged.rglob("test_*.hdf5"))[0]
    path.write_bytes(path.read_bytes()[:200])
    words = (free_port(), str(benchmarks), str(damaged), str(tmp_path))
    ranks = [start(_rank, i, *words) for i in (0, 1)]
    for process in ranks:
        process.join(500)
        assert process.exitcode == 0
    for rank in (0, 1):
        found, error = torch.load(tmp_path / f"{rank}.pt")
        assert found == pytest.approx(expected, abs=1e-6)
        assert path.name in error
