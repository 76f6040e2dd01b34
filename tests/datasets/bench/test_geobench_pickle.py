"""Pickles of a benchmark file run nothing."""

import ast
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from datetime import date
from pathlib import Path
from typing import Any

import geobench
import h5py
import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.crs import CRS

from data.geobench.data import make_geobench
from terrafm_tg.datasets.bench import open_bench
from terrafm_tg.datasets.bench.geobench_pickle import Inert, PickleError, load_pickle, load_text
from terrafm_tg.errors import TerraFMError


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def attacks(marker: Path) -> list[Call]:
    """Calls that make the file ``marker``, through functions that a pickle can name."""
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    return [
        Call(os.system, f"touch {marker}"),
        Call(exec, code),
        Call(subprocess.check_call, ["touch", str(marker)]),
        Call(pickle.loads, pickle.dumps(Call(exec, code))),
        Call(np.load, Call(exec, code)),
    ]


def test_attacks_work_on_an_ordinary_reader(tmp_path: Path) -> None:
    for number, attack in enumerate(attacks(tmp_path / "ran")):
        try:
            pickle.loads(pickle.dumps(attack))
        except TypeError:  # of np.load, after its argument has run
            assert number == 4
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()


@pytest.mark.parametrize("protocol", range(6))
def test_attacks_run_nothing(tmp_path: Path, protocol: int) -> None:
    for attack in attacks(tmp_path / "ran"):
        with pytest.raises(PickleError, match="may be malicious"):
            load_pickle(pickle.dumps({"label": attack}, protocol))
    assert not (tmp_path / "ran").exists()


def test_a_sample_with_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    target = make_geobench(tmp_path, "m-eurosat", 5, 1, 1)
    data = open_bench("m-eurosat", tmp_path, "train")
    for path, attack in zip(sorted(target.glob("train*.hdf5")), attacks(tmp_path / "ran"), strict=True):
        with h5py.File(path, "r+") as file:
            file.attrs["pickle"] = str(pickle.dumps({"label": attack, "bands_order": list(file)}))
    for index, path in enumerate(data.files):
        with pytest.raises(TerraFMError, match=rf"{path.name} has a pickle that was not read.* malicious"):
            data[index]
    with pytest.raises(TerraFMError, match="malicious"):
        data.targets()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["__import__('os').mkdir('{0}')", "b'' if __import__('os').mkdir('{0}') else b''"])
def test_the_text_around_a_pickle_runs_nothing(tmp_path: Path, text: str) -> None:
    code = text.format(tmp_path / "ran")
    with pytest.raises(PickleError, match="damaged"):
        load_text(code)
    assert not (tmp_path / "ran").exists()
    eval(code)
    assert (tmp_path / "ran").exists()


fired: list[str] = []


def fire(*args: Any) -> dict[str, Any]:
    """What no pickle may reach."""
    fired.append("fired")
    return {}


_FUNCTIONS = sorted(
    (module, name)
    for module in ("builtins", "os", "posix", "sys", "importlib", "operator", "functools", "codecs", "numpy", __name__)
    for name in vars(sys.modules[module])
    if name.isidentifier()
)


@settings(deadline=None)
@given(
    named=st.sampled_from(_FUNCTIONS) | st.tuples(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20)),
    arguments=st.lists(st.integers() | st.text(max_size=5) | st.binary(max_size=5), max_size=3),
    call=st.sampled_from([b"R", b"\x81", b"b"]),
)
def test_a_name_is_refused_before_it_is_looked_up(named: tuple[str, str], arguments: list[Any], call: bytes) -> None:
    module, name = named
    if (module, name) in {("numpy", "dtype"), ("numpy", "ndarray")}:
        return
    if module.partition(".")[0] in ("geobench", "ccb", "affine", "rasterio", "datetime"):
        return  # stands for a value without behavior: the next test
    texts = b"".join(b"X" + len(t).to_bytes(4, "little") + t for t in (module.encode(), name.encode()))
    inner = pickle.dumps(tuple(arguments), 2)[2:-1]
    before = set(sys.modules)
    with pytest.raises(PickleError):
        load_pickle(b"\x80\x04" + texts + b"\x93" + inner + call + b".")
    assert set(sys.modules) == before
    assert not fired


@settings(deadline=None)
@given(path=st.sampled_from(["os.system", "rasterio.open", "open", "__builtins__", "GeobenchDataset"]))
def test_what_geobenchs_modules_hold_is_not_reached(path: str) -> None:
    for module in ("geobench.dataset", "datetime", "rasterio", "affine", "ccb.io.task"):
        texts = b"".join(b"X" + len(t).to_bytes(4, "little") + t for t in (module.encode(), path.encode()))
        value = load_pickle(b"\x80\x04" + texts + b"\x93" + b"X\x01\x00\x00\x00a\x85R.")
        assert type(value) is Inert


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(value=_VALUES, protocol=st.integers(3, 5))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert load_pickle(pickle.dumps(value, protocol)) == value
    assert load_text(str(pickle.dumps(value, protocol))) == value
    assert load_pickle(pickle.dumps(OrderedDict(value=value), protocol)) == {"value": value}


_NUMBERS = (
    hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.unsigned_integer_dtypes() | hnp.floating_dtypes(sizes=(32, 64))
)


@settings(deadline=None)
@given(
    array=hnp.arrays(_NUMBERS, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)),
    protocol=st.integers(3, 5),
    fortran=st.booleans(),
)
def test_arrays_come_back(array: np.ndarray, protocol: int, fortran: bool) -> None:
    array = np.asarray(array, order="F" if fortran else "C")
    value = load_pickle(pickle.dumps(array, protocol)).value
    np.testing.assert_array_equal(value, array)
    assert value.dtype == array.dtype
    for scalar in array.flat:
        np.testing.assert_equal(load_pickle(pickle.dumps(scalar, protocol)), scalar.item())


def test_numpy_before_2_named_its_modules_otherwise() -> None:
    data = pickle.dumps(np.arange(3), 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in data
    assert load_pickle(data).value.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["O", "U3", "M8[s]", [("a", "i4"), ("b", "O")]])
def test_arrays_of_anything_but_numbers_are_refused(dtype: Any) -> None:
    with pytest.raises(PickleError):
        load_pickle(pickle.dumps(np.zeros(2, dtype)))


@pytest.mark.parametrize(
    "state",
    [
        (3, "|", (np.dtype("u1"), (1 << 28,)), None, None, 8, 1, 0),  # an item of 256 MB in 8 bytes
        (3, "|", None, ("a",), {"a": (np.dtype("i8"), 1 << 20)}, 8, 1, 0),  # a field far beyond its end
    ],
)
def test_a_pickle_cannot_describe_a_type_that_reads_elsewhere(state: tuple[Any, ...]) -> None:
    """With geobench 1.1.0 the first is a crash, the second a number from somewhere in memory."""

    class Type:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("V8", False, True), state

    attack = Call(np._core.multiarray.scalar, Type(), b"12345678")
    with pytest.raises(PickleError, match="numpy type 'V8'"):
        load_pickle(pickle.dumps(attack, 4))


def test_a_pickle_cannot_ask_for_much_memory() -> None:
    with pytest.raises(PickleError, match="it numbers an object"):
        load_pickle(b"\x80\x04Nr\xff\xff\xff\x7f.")


_REAL = pickle.dumps(
    {
        "01 - Coastal aerosol": {
            "band_info": geobench.sentinel2_13_bands[0],
            "date": date(2020, 1, 2),
            "transform": Affine(10, 0, 0, 0, -10, 0),
            "crs": CRS.from_epsg(32634),
        },
        "label": np.array([0, 1, 0]),
        "bands_order": ["01 - Coastal aerosol"],
    }
)


def test_what_geobench_writes_is_read() -> None:
    value = load_pickle(_REAL)
    assert value["bands_order"] == ["01 - Coastal aerosol"]
    assert value["label"].value.tolist() == [0, 1, 0]
    assert value["01 - Coastal aerosol"]["band_info"].wavelength == 0.443


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, len(_REAL)), at=st.integers(0, len(_REAL) - 1), byte=st.integers(0, 255))
def test_damaged_pickles_are_refused_or_harmless(cut: int, at: int, byte: int) -> None:
    for data in (_REAL[:cut], _REAL[:at] + bytes([byte]) + _REAL[at + 1 :]):
        try:
            load_pickle(data)
        except PickleError:
            assert data != _REAL
    assert ast.literal_eval(str(_REAL)) == _REAL
