"""Arguments of public functions and classes: of the annotated types, and numbers within limits."""

import inspect
import math
import os
import stat
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, TypeAliasType, Union, cast, get_args, get_origin

from terrafm_tg.errors import TerraFMError

#: The least and the largest number, both included.
type Limits = tuple[float, float]
POSITIVE, NOT_NEGATIVE, COUNT, SHARE = (5e-324, math.inf), (0, math.inf), (1, math.inf), (0, 1)
SOME_SHARE = (5e-324, 1)
_ANY = (-math.inf, math.inf)
_LARGEST = 2**63  # of numbers that NumPy and torch can count with


def checked[F: Callable[..., Any]](**limits: Limits) -> Callable[[F], F]:
    """Makes a decorator: wrong arguments of a function, or of a class that is made, are refused before it begins.

    Args:
        limits: Of parameters that are numbers.
    """

    def decorate(function: F) -> F:
        inner: Any = getattr(function, "__init__") if isinstance(function, type) else function  # noqa: B009

        @wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            check_arguments(inner, _signature(inner).bind(*args, **kwargs).arguments, **limits)
            return inner(*args, **kwargs)

        if isinstance(function, type):
            cast("Any", function).__init__ = call
            return function
        return cast("F", call)

    return decorate


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], **limits: Limits) -> None:
    """Refuses arguments that are not of the annotated types, and numbers outside of their limits.

    Args:
        function: The function, whose parameters are annotated.
        given: Values by parameter, and others, such as its ``locals()`` in the first line.
        limits: Of parameters that are numbers.

    Raises:
        TerraFMError: Naming the parameter, its value and what is expected.
    """
    for name, parameter in _signature(function).parameters.items():
        hint, value = parameter.annotation, given.get(name, parameter.default)
        if hint is inspect.Parameter.empty or value is parameter.default or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if not _fits(value, hint, _ANY):
            words = inspect.formatannotation(hint).replace("collections.abc.", "").replace("typing.", "")
            words = f"one of {', '.join(map(str, get_args(hint)))}" if get_origin(hint) is Literal else words
            raise TerraFMError(f"`{name}` is {short(value)}: it must be {words}, finite and not empty.")
        low, high = limits.get(name, _ANY)
        if not _fits(value, hint, (low, high)):
            words = ("above 0" if low == POSITIVE[0] else f"from {low:g}") + f" and up to {high:g}" * (high < math.inf)
            raise TerraFMError(f"`{name}` is {short(value)}: it must be {words}.")
        if any((get_origin(x) or x) in (os.PathLike, Path) for x in _alternatives(hint)):
            _check_path(name, value)


def _check_path(name: str, path: Any) -> None:
    """Refuses a path that leads nowhere, or to what is neither file nor folder; there may be nothing yet."""
    if isinstance(path, str | os.PathLike):
        try:
            mode = os.stat(path).st_mode
            reason = "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "it is neither a file nor a folder"
        except FileNotFoundError:
            reason = ""
        except (OSError, ValueError) as error:  # ValueError: a NUL byte
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        if reason:
            raise TerraFMError(f"`{name}` is {str(path)[:200]!r}, which cannot be used ({reason}): give another path.")


_signature = cache(inspect.signature)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the one."""
    if isinstance(hint, TypeAliasType):
        return _alternatives(hint.__value__)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(part for x in get_args(hint) for part in _alternatives(x))
    return (hint,)


def _fits(value: Any, hint: Any, limits: Limits) -> bool:
    return any(_is(value, x, limits) for x in _alternatives(hint))


def _is(value: Any, hint: Any, limits: Limits) -> bool:
    """Tells whether a value is of one type, which is no union."""
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is int or kind is float:  # NumPy's, too
        real = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return real and abs(value) < _LARGEST and limits[0] <= value <= limits[1]  # NaN is within no limits
    if kind is str:  # a path is one, too
        return isinstance(value, str | os.PathLike) and "\0" not in (text := str(value)) and bool(text.strip())
    if kind is Literal:
        return any(type(value) is type(x) and value == x for x in args)
    if kind is None or kind is Callable:
        return value is None if kind is None else callable(value)
    if kind is Any or not isinstance(kind, type):  # anything, or a name that is not imported here
        return True
    if kind is Sequence and hasattr(value, "tolist"):  # NumPy's and torch's
        value = value.tolist()
    if kind is tuple or kind is list:  # YAML has lists only
        any_length = kind is list or not args or args[-1] is Ellipsis
        whole = isinstance(value, tuple | list) and (any_length or len(value) == len(args))
        return whole and all(_fits(x, args[0], limits) for x in value if args)
    if not isinstance(value, kind) or (isinstance(value, str | bytes) and issubclass(kind, Iterable)):
        return False
    if isinstance(value, Mapping) and len(args) == 2:
        return all(_fits(key, args[0], _ANY) and _fits(x, args[1], limits) for key, x in value.items())
    if isinstance(value, list | tuple | set | Mapping) and len(args) == 1:
        return all(_fits(x, args[0], limits) for x in value)
    return True
