"""Devices and what they compute in."""

import torch

from terrafm_tg.errors import TerraFMError


def find_device(name: str | None) -> torch.device:
    """The device of that name, a GPU or else the CPU where there is none."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not (name.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise TerraFMError(f"There is no device {name!r} here: use cpu, or cuda on a machine with a GPU.")
    return torch.device(name)


def device_in_words(device: torch.device) -> str:
    """A GPU's name; for the CPU the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"
