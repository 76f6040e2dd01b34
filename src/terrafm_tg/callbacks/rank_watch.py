"""When one process of a run ends, the others stop with one sentence instead of waiting for it."""

import os
import secrets
import socket
import sys

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from terrafm_tg.errors import TerraFMError

from .rank_links import Links, Place
from .summary import checkpoint_path


class RankWatch(Callback):
    """Stops all processes of a fit when one has died, has failed, or its machine hangs.

    Without it the others wait in a collective, for half an hour by default, or end in a traceback of the
    communication library. A thread of each rank watches, also while the main thread waits; when a rank ends without
    a farewell the others print which one, where, since when, and how to resume (one line per machine), and end with
    status 1. A process that is killed is noticed at once, a machine that hangs after `silence` seconds. One process
    alone has nothing to watch.

    Args:
        interval: Seconds between two signs of life.
        silence: Seconds without any after which a rank counts as gone.

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
        self._links: Links | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connects the ranks; called on all of them."""
        if stage != "fit" or trainer.world_size == 1:
            return
        place = Place(trainer.global_rank, trainer.node_rank, trainer.local_rank, socket.gethostname())
        listener = None
        if place.rank == 0:
            environment = getattr(trainer.strategy, "cluster_environment", None)
            alone = trainer.num_nodes == 1 or environment is None
            host = "127.0.0.1" if alone else environment.main_address
            listener = socket.create_server(("127.0.0.1" if alone else "", 0), backlog=trainer.world_size)
            meeting = (place, (host, listener.getsockname()[1]), secrets.token_hex())
        else:
            meeting = None
        first, address, token = trainer.strategy.broadcast(meeting)

        def stop(ended: Place, how: str) -> None:
            speaker = 1 if (ended.node, ended.local) == (place.node, 0) else 0
            if place.local == speaker:
                print(f"terrafm: error: {_sentence(trainer, ended, how)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(1)  # the main thread may wait in a collective for ever, where no exception reaches it

        def warn(why: str) -> None:
            rank_zero_warn(f"Not all ranks are watched: {why}. If one dies, the others wait for it.")

        self._links = Links(
            place,
            Place(*first),
            trainer.world_size,
            (address[0], address[1]),
            token,
            listener,
            self.interval,
            self.silence,
            stop,
            warn,
        )
        self._links.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says farewell."""
        if self._links is not None:
            self._links.leave()
            self._links = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tells the others what happened; an error of the connection is left to who caused it."""
        if self._links is None:
            return
        if _is_broken_connection(exception):
            self._links.join(self.silence + 2 * self.interval)  # the sentence comes, and ends this process
        # A signal to end reaches all ranks, and they end together.
        text = str(exception).partition("\n")[0].rstrip(".") or type(exception).__name__
        self._links.leave(None if isinstance(exception, SIGTERMException) else text)
        self._links = None


def _is_broken_connection(exception: BaseException) -> bool:
    """Whether gloo or NCCL lost another rank."""
    named = isinstance(exception, RuntimeError) and any(
        word in str(exception) for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
    )
    return named or isinstance(exception, dist.DistError)


def _sentence(trainer: Trainer, ended: Place, how: str) -> str:
    path = checkpoint_path(trainer)
    if path is None or not (path.exists() or trainer.node_rank):  # another machine may not see the file
        path = trainer.ckpt_path
    resume = (
        "no checkpoint had been written yet, so start again"
        if path is None
        else f"resume with the same command and --ckpt_path {path}, on any number of processes"
    )
    return (
        f"Rank {ended.rank} of {trainer.world_size} on {ended.host} {how}, and the others stop at step "
        f"{trainer.global_step}: {resume}."
    )
