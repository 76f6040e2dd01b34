"""GEO-Bench's pickles, read without running anything.

GEO-Bench keeps band names and labels as a pickle in an attribute of each HDF5 file, and class names in
``task_specs.pkl``. A pickle is a program, so whoever makes such a file could run code on the reader's machine. Here
the program gets no function and no class but the stand-ins of this file: of all that GEO-Bench writes (its own
classes, transforms, dates) they keep the attributes, and of numpy's arrays and scalars the numbers.

The package geobench has a restricted reader of its own, private to it. It names fewer functions than an ordinary one,
but (in 1.1.0) lets numpy restore a type from the file's own description, by which a pickle of 200 bytes reads outside
of its memory, opens files that a pickle names through ``GeobenchDataset``, and makes room for any number of objects.
"""

import ast
import io
import pickle
import pickletools
from typing import Any

import numpy as np

#: Packages whose classes GEO-Bench's files name; ``ccb`` is what it was called before.
_PACKAGES = ("geobench", "ccb", "affine", "rasterio", "datetime")

_DAMAGE = (
    pickle.UnpicklingError, EOFError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, OverflowError,
    MemoryError, RecursionError,
)  # fmt: skip


class PickleError(Exception):
    """The bytes are no pickle that GEO-Bench could have written; the message says why."""


class Inert:
    """The attributes of a pickled instance of any class, without its behavior."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


class _Dtype:
    """A pickled ``numpy.dtype``: booleans, integers and floats."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not (isinstance(code, str) and code[:1] in "biuf" and code[1:].isdecimal()):
            raise PickleError(f"a numpy type {code!r} is in it")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder("=" if state[1] == "|" else state[1])


class _Array:
    """A pickled ``numpy.ndarray``: made empty and given a state, or made of a buffer."""

    def __init__(self, *args: Any) -> None:
        if args and args[0] is not _Array:
            self.value = _array(*args)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: bytes, dtype: _Dtype, shape: tuple[int, ...] = (), order: str = "C") -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
}
for _core in ("core", "_core"):  # the modules' names before and since numpy 2
    _STAND_INS[f"numpy.{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"numpy.{_core}.multiarray", "scalar"] = lambda dtype, data: _array(data, dtype).item()
    _STAND_INS[f"numpy.{_core}.numeric", "_frombuffer"] = _Array


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if module.partition(".")[0] in _PACKAGES:
            return Inert
        raise PickleError(f"it asks for {module}.{name}, which GEO-Bench does not write, and may be malicious")


def load_pickle(data: bytes) -> Any:
    """Returns the pickled value: builtin values, :class:`Inert` instances, and numpy arrays as objects with ``value``.

    Raises:
        PickleError: If the bytes are damaged, or ask for anything that GEO-Bench does not write.
    """
    try:
        for code, argument, _ in pickletools.genops(data):
            # The reader makes room for the number that stands here, which may be any.
            if code.name in ("PUT", "LONG_BINPUT") and argument is not None and argument > len(data):
                raise PickleError(f"it numbers an object {argument}")
        return _Reader(io.BytesIO(data)).load()
    except _DAMAGE as error:
        raise PickleError(f"it is damaged ({type(error).__name__})") from error


def load_text(text: str) -> Any:
    """Returns the value of a pickle written as ``str(bytes)``, as GEO-Bench's HDF5 attributes are.

    Raises:
        PickleError: As :func:`load_pickle`.
    """
    try:
        data = ast.literal_eval(text)
    except _DAMAGE as error:
        raise PickleError(f"it is damaged ({type(error).__name__})") from error
    if not isinstance(data, bytes):
        raise PickleError("it is not the text of a pickle")
    return load_pickle(data)
