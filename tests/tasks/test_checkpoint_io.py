import multiprocessing
import os
import resource
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from refusals import refused
from terrafm_tg.callbacks import AtomicCheckpointIO
from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.settings import PrototypeHead

BIG = {"state_dict": {"w": torch.arange(2_000_000)}}


def other_filesystem(path: Path) -> Path:
    """A folder on another filesystem than the temp directory."""
    for root in ("/dev/shm", str(Path.home()), str(Path.cwd())):
        if os.path.isdir(root) and os.access(root, os.W_OK) and os.stat(root).st_dev != path.stat().st_dev:
            return Path(tempfile.mkdtemp(dir=root))
    pytest.skip("There is one filesystem only.")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_checkpoint_is_whole_at_every_moment(tmp_path: Path, elsewhere: bool) -> None:
    """A reader that looks all the time sees the old checkpoint or the new one, never a part of either."""
    folder = other_filesystem(tmp_path) if elsewhere else tmp_path
    path, io = folder / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint(BIG, path)
    size, seen, done = path.stat().st_size, set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(path.stat().st_size)

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(5):
        io.save_checkpoint(BIG, path)
    done.set()
    reader.join()
    assert seen == {size}
    assert torch.equal(io.load_checkpoint(path)["state_dict"]["w"], BIG["state_dict"]["w"])
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


def test_a_failed_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint(BIG, path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        io.save_checkpoint({"state_dict": BIG["state_dict"], "cannot be pickled": lambda: None}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Torch's own error is of a file that is too short."""
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {}}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with refused(match=f"{path} cannot be written .File too large.: make room on the disk of {tmp_path}"):
            io.save_checkpoint(BIG, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_leftover_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.0.tmp").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(BIG, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(BIG, path)
    assert path.exists()


def test_what_is_no_checkpoint_of_lightning_is_said(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(TerraFMError, match=r"list\.ckpt is not a checkpoint of Lightning"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "list.ckpt")


def test_a_missing_checkpoint_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TerraFMError, match="There is no checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "no.ckpt")


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def test_no_code_runs_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "payload": Payload()}, path)
    with pytest.raises(TerraFMError, match="only tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(path)


def claims(folder: Path, answers: "multiprocessing.Queue[str]", done: "multiprocessing.synchronize.Event") -> None:
    """Writes a checkpoint as another run does, and lives on."""
    try:
        AtomicCheckpointIO().save_checkpoint(BIG, folder / "last.ckpt")
        answers.put("written")
    except TerraFMError as error:
        answers.put(str(error))
    done.wait(60)


def test_two_runs_share_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused; once the first has ended, however it did, its folder is free."""
    monkeypatch.setattr("terrafm_tg.tasks.checkpoint_io._PATIENCE", 0.5)
    fork = multiprocessing.get_context("fork")
    answers, done = fork.Queue(), fork.Event()
    first = fork.Process(target=claims, args=(tmp_path, answers, done))
    first.start()
    assert answers.get(timeout=60) == "written"
    with pytest.raises(TerraFMError, match=r"Another run writes its checkpoints into .*`trainer.default_root_dir`"):
        AtomicCheckpointIO().save_checkpoint(BIG, tmp_path / "last.ckpt")
    first.kill()
    first.join()
    AtomicCheckpointIO().save_checkpoint(BIG, tmp_path / "last.ckpt")


def test_tasks_verify_their_checkpoints_in_any_trainer(tmp_path: Path) -> None:
    task = TerraFM(model="terrafm_nano", depth=1, head=PrototypeHead(prototypes=16))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.strategy.connect(task)
    task._trainer = trainer
    task.setup("predict")
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    trainer.save_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert torch.equal(TerraFM.load_from_checkpoint(tmp_path / "run.ckpt").student.cls_token, task.student.cls_token)
    content = bytearray((tmp_path / "run.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "run.ckpt").write_bytes(content)
    with pytest.raises(TerraFMError, match=r"run\.ckpt is damaged"):
        TerraFM.load_from_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(TerraFMError, match="is a folder"):
        TerraFM.load_from_checkpoint(tmp_path)
