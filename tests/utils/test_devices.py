import os
import subprocess
import sys

import pytest
import torch

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.devices import describe_device, find_device, has_bf16_units


@pytest.mark.parametrize(
    ("capability", "unit", "expected"),
    [("DEFAULT", True, False), ("AVX2", True, False), ("AVX512", True, True), ("AVX512", False, False)],
)
def test_bf16_units_of_a_processor(
    capability: str, unit: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: unit)
    assert has_bf16_units("cpu") is expected
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: unit)
    assert has_bf16_units("cpu") is expected


def test_bf16_units_are_absent_where_torch_is_limited() -> None:
    code = "from terrafm_tg.utils.devices import has_bf16_units; print(has_bf16_units('cpu'))"

    def ask(**limits: str) -> str:
        known = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
        run = subprocess.run([sys.executable, "-c", code], env=known | limits, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    assert ask(ATEN_CPU_CAPABILITY="avx2") == "False"
    units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert ask() == str(units)  # this machine's own, without a limit


def test_devices() -> None:
    assert not has_bf16_units("meta")
    assert describe_device(torch.device("cpu")).startswith("CPU, ")
    assert find_device("cpu").type == "cpu"
    with pytest.raises(TerraFMError, match="no device 'tpu'"):
        find_device("tpu")
