"""TorchGeo's own tasks by name: what they load is what the file holds, and they train."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.models import get_model, get_weight
from torchgeo.tasks import Classification, Regression
from torchgeo.tasks.utils import load_state_dict

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder, export_encoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """An exported `terrafm_tiny` of the usual depth, and its tensors."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    state = build_encoder("terrafm_tiny").state_dict()
    torch.save({"state_dict": {f"teacher.{name}": p for name, p in state.items()}}, folder / "last.ckpt")
    return export_encoder(folder / "last.ckpt", folder / "encoder")[1], state


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("terrafm_tiny", 12),
        ("terrafm_tiny", 2),
        ("terrafm_tiny_s1rtc", 2),
        ("terrafm_tiny_s2l1c", 12),
        ("terrafm_tiny_rgb", 3),
    ],
)
def test_every_pretrained_tensor_equals_the_files(
    exported: tuple[Path, dict[str, Tensor]], name: str, channels: int
) -> None:
    path, state = exported
    task = Classification(model=name, weights=str(path), in_channels=channels, num_classes=4)
    own = task.model.state_dict()
    assert set(own) - set(state) == {"head.weight", "head.bias"}
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("fusion", [True, False], ids=["ours", "published"])
def test_load_state_dict(exported: tuple[Path, dict[str, Tensor]], fusion: bool) -> None:
    state = {key: p for key, p in exported[1].items() if fusion or ".fusion." not in key}
    model = build_encoder("terrafm_tiny_rgb", num_classes=3)
    missing, unexpected = load_state_dict(model, dict(state))
    assert set(missing) == {"head.weight", "head.bias"}
    assert unexpected == []
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())


def test_another_depth_is_refused(exported: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    state = build_encoder("terrafm_tiny", depth=2).state_dict()
    torch.save({"state_dict": {f"teacher.{name}": p for name, p in state.items()}}, tmp_path / "last.ckpt")
    path = export_encoder(tmp_path / "last.ckpt", tmp_path / "two")[1]
    assert len(get_model("terrafm_tiny", weights=path).blocks) == 2
    with pytest.raises(TerraFMError, match="has 2 blocks and the model 12: build it with depth=2"):
        Classification(model="terrafm_tiny", weights=str(path), in_channels=2, num_classes=2)
    with pytest.raises(TerraFMError, match="192 wide and the model 384"):
        Classification(model="terrafm_small", weights=str(exported[0]), in_channels=2, num_classes=2)


@pytest.mark.parametrize("task", [Classification, Regression])
def test_trains_an_epoch(exported: tuple[Path, dict[str, Tensor]], tmp_path: Path, task: type) -> None:
    classes = {"num_classes": 2} if task is Classification else {"num_outputs": 1}
    labels = [i % 2 if task is Classification else torch.tensor([float(i)]) for i in range(4)]
    data = DataLoader([{"image": torch.randn(2, 32, 32), "label": label} for label in labels], batch_size=2)
    module = task(
        model="terrafm_tiny", weights=str(exported[0]), in_channels=2, freeze_backbone=True, **classes
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(module, data, data)
    own = module.model.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in exported[1].items())
    assert len(trainer.predict(module, data)) == 2


def test_registered_names_resolve_where_tasks_look_them_up() -> None:
    from torchgeo.tasks import classification, segmentation

    for module in (classification, segmentation):
        assert module.get_weight("terrafm_base") is get_weight("TerraFM_Base_Weights.SENTINEL12_ALL_DINO")
