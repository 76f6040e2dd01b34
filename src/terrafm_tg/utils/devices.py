"""Devices and the precision they compute in."""

import torch

from terrafm_tg.errors import TerraFMError


def find_device(name: str | None) -> torch.device:
    """Finds the device of that name, a GPU or else the CPU where there is none."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not (name.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise TerraFMError(f"There is no device {name!r} here: use cpu, or cuda on a machine with a GPU.")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Names a GPU; of the CPU, tells the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def has_bf16_units(device: torch.device | str | None = None) -> bool:
    """Tells if a device multiplies in bfloat16; one without the units emulates it, slower than float32.

    Args:
        device: Of torch; None for a GPU, or else the CPU where there is none.

    Returns:
        True for a GPU with bfloat16, and for a processor with AVX512_BF16 or AMX that torch may use: the environment
        variable ``ATEN_CPU_CAPABILITY`` can limit it.
    """
    device = torch.device(device) if device is not None else find_device(None)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
