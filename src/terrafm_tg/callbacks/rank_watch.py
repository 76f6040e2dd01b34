"""Stops all processes of a run with one sentence when one of them has ended, instead of waiting for it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from terrafm_tg.errors import TerraFMError

from . import rank_guard
from .summary import checkpoint_path

#: Seconds that a rank with an error waits for word that another ended before; less than a guard's own.
_GRACE = 1.0


class RankWatch(Callback):
    """Stops all processes of a fit when one has died, has failed, or its machine hangs.

    Without it the others wait in a collective, for half an hour by default, or end in a traceback of the
    communication library. A small process beside each rank (:mod:`~terrafm_tg.callbacks.rank_guard`) watches; when a
    rank ends without a farewell, the others print which one, where, since when, and how to resume, one line per
    machine, and end with status 1. A process that is killed is noticed at once, a machine that hangs after `silence`
    seconds. One process alone has nothing to watch.

    Args:
        interval: Seconds between two signs of life.
        silence: Seconds without any after which a machine counts as gone.

    Raises:
        TerraFMError: If `silence` is not longer than `interval`.
    """

    def __init__(self, interval: float = 5.0, silence: float = 30.0) -> None:
        if not 0 < interval < silence:
            raise TerraFMError(
                f"`interval` is {interval} and `silence` {silence}: seconds between signs of life must be above 0 and "
                "shorter than the silence that ends a run."
            )
        self.interval, self.silence = interval, silence
        self._guard: subprocess.Popen[bytes] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts this rank's guard; called on all ranks."""
        if stage != "fit" or trainer.world_size == 1:
            return
        place = (trainer.global_rank, trainer.node_rank, trainer.local_rank, socket.gethostname())
        listener, meeting = None, dict[str, Any]()
        if trainer.global_rank == 0:
            # Within one machine nobody else needs to reach it.
            environment = getattr(trainer.strategy, "cluster_environment", None)
            host = reach = "127.0.0.1"
            if trainer.num_nodes > 1 and environment is not None:
                host, reach = "", environment.main_address
            listener = socket.create_server((host, 0), backlog=trainer.world_size)
            meeting = {"first": place, "address": (reach, listener.getsockname()[1]), "token": secrets.token_hex()}
        meeting = trainer.strategy.broadcast(meeting)
        handed = None if listener is None else listener.fileno()
        own = {"pid": os.getpid(), "place": place, "ranks": trainer.world_size, "listener": handed}
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", rank_guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[] if handed is None else [handed],
            start_new_session=True,  # what ends the rank, such as Ctrl-C, does not end its guard
            bufsize=0,
        )
        if listener is not None:
            listener.close()
        self._say(own | meeting | {"interval": self.interval, "silence": self.silence})
        threading.Thread(target=_end_when_told, args=(self._guard,), daemon=True).start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tells the guard how far the run is and where its last checkpoint lies."""
        if self._guard is not None:
            path = checkpoint_path(trainer)
            self._say({"state": {"step": trainer.global_step, "path": path and str(path)}})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says farewell."""
        self._leave({"bye": True})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tells the others what happened, unless it follows from another's end, as a broken connection does."""
        if self._guard is None:
            return
        # Where another's end is the cause, the guard's sentence comes meanwhile, and ends this process.
        time.sleep(self.silence + 2 * self.interval if _is_broken_connection(exception) else _GRACE)
        if isinstance(exception, SIGTERMException):  # reaches all ranks, and they end together
            self._leave({"bye": True})
        else:
            text = str(exception).partition("\n")[0].rstrip(".")
            self._leave({"error": text or type(exception).__name__})

    def _leave(self, word: dict[str, Any]) -> None:
        if self._guard is None:
            return
        self._say(word)
        self._guard = None

    def _say(self, word: dict[str, Any]) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        try:
            self._guard.stdin.write(json.dumps(word).encode() + b"\n")
        except BrokenPipeError:  # it has ended, as it does when rank 0 is through
            self._guard = None


def _end_when_told(guard: "subprocess.Popen[bytes]") -> None:
    """Ends this process on the guard's word: the main thread may wait where no exception reaches it."""
    if guard.stdout is not None and guard.stdout.readline():
        sys.stdout.flush()
        os._exit(1)
    guard.wait()


def _is_broken_connection(exception: BaseException) -> bool:
    """Returns whether gloo or NCCL lost another rank."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
    lost = isinstance(exception, RuntimeError) and any(word in str(exception) for word in words)
    return lost or isinstance(exception, dist.DistError)
