"""Processes that tests start and kill: forked from a server that has imported the libraries once.

An interpreter of its own takes a process 7 s. The server has no threads and has never run a backward pass, so that its
children may do anything, which those forked from a test process may not.
"""

import multiprocessing
import multiprocessing.process
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from multiprocessing import forkserver
from typing import Any

import torch

#: What the server imports: by these, everything that a command may need.
PRELOAD = ["terrafm_tg.cli.fit", "terrafm_tg.evaluation.protocols", "distributed"]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOAD)


def start(target: Callable[..., object], *args: Any, **kwargs: Any) -> multiprocessing.process.BaseProcess:
    """Run a module's function in a process of its own, which starts others as any on Linux does: by forking."""
    process = SERVER.Process(target=_run, args=(target, args, kwargs))
    process.start()
    return process


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def serve_dask() -> AbstractContextManager[object]:
    """Within it, Dask's worker processes come from the server too."""
    import_module("distributed")  # its settings are there before one is changed for a while
    forkserver.ensure_running()  # with what is to be imported; Dask would name less
    return import_module("dask.config").set({"distributed.worker.multiprocessing-method": "forkserver"})


def _run(target: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    target(*args, **kwargs)
