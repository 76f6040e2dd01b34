"""Ranks as forks of a process that has imported everything, with the environment that torchrun gives its own."""

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import yaml
from lightning.pytorch.strategies import Strategy

from processes import free_port

CONF = Path(__file__).resolve().parents[2] / "conf/hardware"


def fork_ranks(ranks: int, log: Path, call: Callable[..., None], *args: Any) -> list[Any]:
    """Starts processes that call ``call(rank, ranks, *args)``; what they print goes to ``<log>_<rank>.log``."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    started = [fork.Process(target=_be, args=(r, ranks, port, log, call, *args)) for r in range(ranks)]
    for process in started:
        process.start()
    return started


def _be(rank: int, ranks: int, port: int, log: Path, call: Callable[..., None], *args: Any) -> None:
    # After a fork torch makes its thread pool anew when it is first asked for, without a lock: two threads that ask at
    # the same time, as the first backward pass does, abort with "Invalid thread pool". Here there is only one.
    torch.set_num_threads(1)
    be_rank(rank, ranks, port, log)
    call(rank, ranks, *args)


def be_rank(rank: int, ranks: int, port: int, log: Path) -> None:
    """Makes this process a rank, by its environment, as torchrun does; it prints to ``<log>_<rank>.log``."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": log.name}
    os.environ |= {key: str(value) for key, value in (numbers | meeting).items()}
    file = os.open(f"{log}_{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)


def overlay_strategy(overlay: str, ranks: int) -> Strategy | str:
    """The strategy that an overlay of ``conf/hardware`` configures, for so many processes; none for one."""
    if ranks == 1:
        return "auto"
    strategy = yaml.safe_load((CONF / f"{overlay}.yaml").read_text())["trainer"]["strategy"]
    options = strategy.get("init_args", {}) | {"timeout": timedelta(minutes=10)}
    return resolve_name(strategy["class_path"])(**options)
