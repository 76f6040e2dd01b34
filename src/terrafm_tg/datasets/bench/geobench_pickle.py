"""GEO-Bench's pickles, read without running anything.

GEO-Bench keeps band names and labels as a pickle in an attribute of each HDF5 file, and class names in
``task_specs.pkl``. A pickle is a program, so whoever makes such a file could run code on the reader's machine. Here
the program gets no function and no class but the stand-ins of this file: of all that GEO-Bench writes (its own
classes, transforms, dates) they keep the attributes, and of numpy's arrays and scalars the numbers.
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
    """What a pickled instance of a class that we do not use becomes: its attributes, and no behaviour."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """An empty one, whatever the pickle hands over."""
        return object.__new__(cls)

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
    """A pickled ``numpy.ndarray``."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _empty_array(subtype: type, shape: tuple[int, ...], typecode: bytes) -> _Array:
    return _Array()


def _filled_array(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    return _array(data, dtype, (), "C").item()


_STAND_INS = {
    ("collections", "OrderedDict"): dict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    # The modules' names before and since numpy 2.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _filled_array for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if module.partition(".")[0] in _PACKAGES:
            return Inert
        raise PickleError(
            f"it asks for {module}.{name}, which GEO-Bench does not write, and may be malicious"
        )


def load_pickle(data: bytes) -> Any:
    """What was pickled: builtin values, :class:`Inert` instances, and numpy arrays as objects with ``value``.

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
    """What was pickled and written as ``str(bytes)``, as GEO-Bench's HDF5 attributes are.

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
