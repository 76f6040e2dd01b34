"""An inverted file of embeddings (faiss), kept beside them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write, write_json
from terrafm_tg.utils.trust import read_text

from .opened import Embeddings
from .tables import TableLayer
from .vectors import PART, keep_nearest, normalized

#: The share of the nearest places that the index is to find, and of how many; embeddings that are asked for it.
RECALL, TOP, ASKED = 0.95, 10, 100
_PER_LIST, _STEPS = 40, 10  # embeddings that each list's center is fitted to, and steps of k-means


class SearchIndex:
    """Embeddings in lists by the nearest of some centers, of which those next to a query are looked through.

    Vectors are kept in half precision: the file takes 2 · D bytes a place, and a search maps it into memory.

    Args:
        path: The file.
        faiss_index: What it holds.
        recall: Share of the true :data:`TOP` nearest places that it finds, measured when it was made.
        made: It was made just now.
    """

    def __init__(self, path: Path, faiss_index: Any, recall: float, made: bool) -> None:
        self.path, self.recall, self.made = path, recall, made
        self._index = faiss_index

    def search(
        self, queries: NDArray[np.float32], k: int, excluded: Sequence[NDArray[np.int64]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the nearest places; arguments and results as of :func:`~.search.search_all`."""
        import faiss

        ids, cosines = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for row, (query, out) in enumerate(zip(queries, excluded, strict=True)):
            chosen = faiss.IDSelectorNot(faiss.IDSelectorBatch(out))
            parameters = faiss.SearchParametersIVF(  # type: ignore[call-arg]
                sel=chosen, nprobe=self._index.nprobe
            )
            cosines[row], ids[row] = self._index.search(query[None], k, params=parameters)
        return ids, np.where(ids >= 0, cosines, -np.inf)


def index_path(opened: Embeddings) -> Path:
    """Returns where the index of some embeddings is kept: beside a file, in a folder of several."""
    single = len(opened.layers) == 1 and opened.layers[0].path == opened.path
    return opened.path.with_name(f"{opened.path.name}.faiss") if single else opened.path / "embeddings.faiss"


def open_search_index(opened: Embeddings, rebuild: bool = False) -> SearchIndex:
    """Opens the index of some embeddings; makes it where there is none.

    Args:
        opened: The embeddings.
        rebuild: Make it in any case.

    Raises:
        TerraFMError: If it is of other embeddings, or of an earlier state of them.
    """
    import faiss

    path = index_path(opened)
    told = path.with_name(f"{path.name}.json")
    if rebuild or not path.is_file():
        return _build(opened, path, told)
    try:
        said = json.loads(read_text(told) or "{}")
        if said.get("embeddings") != _state(opened):
            raise TerraFMError(
                f"{path} is out of date: the embeddings were written anew or are others since it was made; add "
                "`--rebuild` to make it again."
            )
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        if index.d != opened.dims or index.ntotal != said["count"]:
            raise ValueError("other numbers")
        return SearchIndex(path, index, float(said["recall"]), made=False)
    except TerraFMError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TerraFMError(f"{path} is damaged: add `--rebuild` to make it again.") from error


def _build(opened: Embeddings, path: Path, told: Path) -> SearchIndex:
    """Fits the centers to a sample, fills the lists, and measures the recall."""
    import faiss

    most = max(_PER_LIST * int(4 * math.sqrt(opened.count)), 4096)
    sample = [normalized(part.x) for _, part in opened.parts(min(most, 2 * PART // opened.dims))]
    train = np.concatenate(sample) if sample else np.empty((0, opened.dims), np.float32)
    del sample
    if not len(train):
        raise TerraFMError(f"{opened.path} holds no embedding that is there: all are missing.")
    lists = max(1, min(int(4 * math.sqrt(opened.count)), len(train) // _PER_LIST))
    index: Any = faiss.index_factory(opened.dims, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = _STEPS
    index.train(train)
    asked = train[np.random.default_rng(0).permutation(len(train))[:ASKED]]
    del train
    true = np.empty((len(asked), 0), np.int64)
    best = np.empty((len(asked), 0), np.float32)
    for layer, part in opened.parts():
        x, ids = normalized(part.x).astype(np.float16).astype(np.float32), opened.ids(layer, part.place)
        index.add_with_ids(x, ids)
        best, true = keep_nearest(best, true, asked @ x.T, ids, TOP)
    recall = 0.0
    for probes in (2**i for i in range(lists.bit_length() + 1)):
        index.nprobe = min(probes, lists)
        cosines, _ = index.search(asked, true.shape[1])
        # As near as the last of the true ones: which of equal ones is listed does not count.
        recall = float((cosines >= best[:, -1:] - 1e-6).mean())
        if recall >= RECALL:
            break
    with atomic_write(path, sole_writer=True) as part_path:
        faiss.write_index(index, str(part_path))
    write_json(told, {"embeddings": _state(opened), "recall": recall, "count": index.ntotal, "probes": index.nprobe})
    return SearchIndex(path, index, recall, made=True)


def _state(opened: Embeddings) -> str:
    columns = " ".join(layer.column for layer in opened.layers if isinstance(layer, TableLayer))
    return f"{opened.fingerprint} {opened.dims} {columns}".strip()
