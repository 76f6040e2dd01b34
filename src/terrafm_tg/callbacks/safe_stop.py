"""The end of a run that does not end by itself: on a signal, without one of its ranks, without a loader's worker."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks.checkpoint_io import claim

from .summary import checkpoint_path

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STATUS: dict[Any, str] = {128 + number: number.name for number in _SIGNALS}
_ROLL_CALL = 5.0  # seconds in which the ranks that are left answer one another


class SafeStop(Callback):
    """Ends a run with a checkpoint where it can, one sentence, and a status that is not 0. The command always takes it.

    - SIGTERM, SIGINT and SIGHUP, to any process of the run: all ranks finish the optimizer step, write ``last.ckpt``
      and end with status 128 + signal. A second SIGINT ends at once.
    - A rank that is killed, or does not come for as long as the strategy's ``timeout`` says: torch ends the waiting of
      the others with an error; they call the roll, and the sentence names the rank.
    - A killed worker of a data loader: the likely cause.
    """

    def __init__(self) -> None:
        self._signal = self._step = self._owner = 0
        self._training = False
        self._saved: Path | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._hosts: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listens to signals, and makes a group in which the ranks agree without waiting for a GPU."""
        if dist.is_initialized() and self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=getattr(trainer.strategy, "_timeout", None))
            self._hosts = [""] * trainer.world_size
            dist.all_gather_object(self._hosts, socket.gethostname(), self._group)
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in _SIGNALS}
            self._handlers = {number: old for number, old in found.items() if old != signal.SIG_IGN}  # as under nohup
        self._owner = os.getpid()
        self._listen()

    def _listen(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a fork, such as a worker of a data loader
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # what a terminal sends to all is for the trainer, with which the others end
        if not self._training or self._signal == number == signal.SIGINT:
            raise SystemExit(128 + number)
        self._signal = self._signal or number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens again, in place of Lightning, whose handler talks to the other ranks in the middle of a step.

        Keeps the folder of the checkpoints for this run, too.

        Raises:
            TerraFMError: If another run has it.
        """
        self._signal, self._step, self._saved, self._training = 0, trainer.global_step, None, True
        self._listen()
        for callback in trainer.checkpoint_callbacks if trainer.is_global_zero else ():
            if (folder := getattr(callback, "dirpath", None)) and "://" not in str(folder):
                claim(Path(folder))

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stops all ranks behind the optimizer step in which one of them got a signal.

        Raises:
            SystemExit: With status 128 + signal.
        """
        if trainer.global_step == self._step:
            return  # within a step of several batches, whose gradients no checkpoint keeps
        self._step = trainer.global_step
        number = torch.tensor(self._signal)
        if self._group is not None:
            dist.all_reduce(number, dist.ReduceOp.MAX, self._group)
        if number:  # a signal that comes meanwhile is of the next step
            self._signal = int(number)
            folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
            self._saved = Path(folder, "last.ckpt")
            trainer.save_checkpoint(self._saved, weights_only=False)
            raise SystemExit(128 + self._signal)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves what comes behind the last step to end by itself."""
        self._training = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listens no more."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says what happened, where Lightning and torch do not, and takes the processes along that this one started.

        Raises:
            TerraFMError: If a rank is gone, or a worker of a data loader.
            SystemExit: If another rank says so.
        """
        trainer._signal_connector.teardown()  # which would bring back, later, the handlers that it found
        self.teardown(trainer, pl_module, "")
        started = getattr(trainer.strategy.launcher, "procs", [])
        children = [*started]
        started.clear()  # or else Lightning kills this process when one of them ends
        try:
            self._explain(trainer, exception)
        finally:
            deadline = time.monotonic() + 2 * _ROLL_CALL
            for child in children:
                try:
                    child.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()

    def _explain(self, trainer: Trainer, exception: BaseException) -> None:
        status = 128 + self._signal if self._signal else getattr(exception, "code", None)
        worker = next((text for text in _messages(exception) if text.startswith("DataLoader worker")), None)
        if status in _STATUS:
            if trainer.is_global_zero:
                _say(f"stopped by {_STATUS[status]}{self._resume(trainer)}")
            raise SystemExit(status) from None  # a new one: Lightning's own way out fails where a loader just starts
        if _is_broken_connection(exception):
            self._name_missing(trainer, exception)
        elif dist.is_initialized():
            call_roll(trainer.global_rank, 0, "failed")
        if worker:
            raise TerraFMError(
                f"A worker process that reads data has died ({worker}), most likely for want of memory: give the job "
                f"more, or lower `data.num_workers` or `data.batch_size`{self._resume(trainer)}"
            ) from exception
        if self._training and trainer.is_global_zero:
            _say(f"stopped by an error{self._resume(trainer)}")

    def _name_missing(self, trainer: Trainer, exception: BaseException) -> None:
        """Speaks for the ranks that are left: rank 0, or without it rank 1 and the first rank of each machine."""
        rank, ranks = trainer.global_rank, trainer.world_size
        said = call_roll(rank, ranks, "here")
        speaks = rank == 0 or (0 not in said and (rank == 1 or trainer.local_rank == 0))
        if not speaks or b"failed" in said.values():  # who failed says why
            raise SystemExit(1) from exception
        missing = [n for n in range(ranks) if n not in said] if rank == 0 else [0]
        if missing:
            names = " and ".join(f"{n} on {self._hosts[n]}" if self._hosts else f"{n}" for n in missing)
            raise TerraFMError(
                f"Rank {names} (of {ranks}) has ended or no longer answers, and the others end too"
                f"{self._resume(trainer)}"
            ) from exception

    def _resume(self, trainer: Trainer) -> str:
        if trainer.state.fn != "fit":
            return "."
        path = self._saved or checkpoint_path(trainer)
        if path is None:
            return ": no checkpoint had been written, so start again."
        return f" (step {trainer.global_step}): resume with the same command and --ckpt_path {path}."


def _say(sentence: str) -> None:
    print(f"terrafm: {sentence}", file=sys.stderr, flush=True)


def call_roll(rank: int, ranks: int, word: str) -> dict[int, bytes]:
    """Answers for a rank; rank 0 hears the answers of all, the others that of rank 0.

    Args:
        rank: Of this process.
        ranks: How many there are; 0 to hear of none.
        word: The answer.

    Returns:
        Rank -> its answer, as far as they come within seconds.
    """
    said = {rank: word.encode()}

    def ask() -> None:
        with suppress(RuntimeError):  # rank 0, or torchrun, keeps the answers, as it does the ranks' addresses
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, rank == 0
            store = dist.TCPStore(*address, wait_for_workers=False, multi_tenant=True)
            answers = dist.PrefixStore(f"terrafm/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
            answers.set(str(rank), word)
            while missing := [n for n in range(ranks if rank == 0 else min(ranks, 1)) if n not in said]:
                said.update({n: answers.get(str(n)) for n in missing if answers.check([str(n)])})
                time.sleep(0.1)

    asking = threading.Thread(
        target=ask, daemon=True
    )  # a store that hangs keeps its clients, whatever time-out they have
    asking.start()
    asking.join(_ROLL_CALL)
    return dict(said)


def _messages(exception: BaseException | None) -> Iterator[str]:
    """Yields the first line of an exception, and of those that it followed: a dead worker is met anywhere."""
    while exception is not None:
        yield str(exception).partition("\n")[0].rstrip(". ")
        exception = exception.__cause__ or exception.__context__


def _is_broken_connection(exception: BaseException) -> bool:
    """Tells if gloo, NCCL or the store of the ranks' addresses lost another rank."""
    words = ("gloo", "nccl", "by peer", "broken pipe", "timed out waiting", "caused pair closure")
    lost = isinstance(exception, RuntimeError) and any(word in str(exception).lower() for word in words)
    return lost or isinstance(exception, dist.DistError)
