"""Embeddings of a dataset, kept on disk under a key of model, settings and data."""

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.progress import with_bar

from .encoder import BenchEncoder

#: Part of every key: another number makes all older files be left alone.
_VERSION = 1


class Embedded(NamedTuple):
    """A dataset as an encoder sees it.

    Args:
        token: The model's own embeddings (n, D); their mean over patches where there is nothing else.
        mean: Means over the patches (n, E); the same as ``token`` where there is nothing else.
        target: Labels, int64 (n,) or (n, L).
    """

    token: Tensor
    mean: Tensor
    target: Tensor

    def pooled(self, pooling: str) -> Tensor:
        """Returns the embeddings that ``ModelSpec.pooling`` asks for."""
        return self.token if pooling == "token" else self.mean


def embeddings(
    encoder: BenchEncoder,
    dataset: BenchDataset,
    cache: Path | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Embedded:
    """Computes class token and mean of the patch tokens of every sample, in one forward each.

    Args:
        encoder: It is moved to ``device``.
        dataset: Of classes or several labels.
        cache: Folder in which they are looked for, and kept (written atomically); None keeps nothing.
        batch_size: Images per forward.
        num_workers: Processes that read and decode meanwhile.
        device: Where the encoder computes.
        progress: Whether to show a progress bar.

    Returns:
        Float32 embeddings on the CPU.

    Raises:
        TerraFMError: If the dataset is empty, or a file of it is damaged.
    """
    if not len(dataset):
        raise TerraFMError(f"The {dataset.split} split of {dataset.task.name} is empty: give a partition with samples.")
    path = None if cache is None else cache / f"{embedding_key(encoder, dataset)}.safetensors"
    kept = None if path is None else _read(path, len(dataset))
    if kept is not None:
        return kept
    encoder = encoder.to(device).eval()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        batches = read_batches(dataset, batch_size, num_workers, device)
        title = f"Embedding {dataset.task.name}, {dataset.split}"
        for batch in with_bar(batches, title) if progress else batches:
            found = encoder.embed({k: v for k, v in batch.items() if k.startswith("image_")})
            token, mean = (found[k] if k in found else next(iter(found.values())) for k in ("token", "mean"))
            parts.append((token.float().cpu(), mean.float().cpu(), batch["label"].long().cpu()))
    result = Embedded(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    if not result.token.isfinite().all() or not result.mean.isfinite().all():
        raise TerraFMError(
            f"{encoder.spec.label} gives embeddings of {dataset.task.name} that are not finite: look at its weights."
        )
    if path is not None:
        with atomic_write(path) as beside:
            save_file({k: v.contiguous() for k, v in result._asdict().items()}, beside)
    return result


def embedding_key(encoder: BenchEncoder, dataset: BenchDataset) -> str:
    """Returns the SHA-256 of all that decides the embeddings."""
    content = (_VERSION, encoder.identity, dataset.fingerprint)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def read_batches(
    dataset: BenchDataset, batch_size: int, num_workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Yields batches in the dataset's order, on ``device``; workers decode the next ones meanwhile.

    Raises:
        TerraFMError: If a file is damaged; the same sentence with and without workers.
    """
    pin = torch.device(device).type == "cuda"
    for batch in DataLoader(dataset, batch_size, num_workers=num_workers, pin_memory=pin):
        yield {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def _read(path: Path, count: int) -> Embedded | None:
    """Returns the content of the cache; None if it has none, or it is damaged."""
    try:
        kept = load_file(path)
        if set(kept) == set(Embedded._fields) and all(len(tensor) == count for tensor in kept.values()):
            return Embedded(**kept)
        reason = "it holds something else"
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        reason = str(error)
    warnings.warn(f"The kept embeddings {path} are damaged ({reason}): they are computed again.", stacklevel=3)
    return None
