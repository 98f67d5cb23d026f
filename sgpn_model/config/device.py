"""Which device an option means."""

import torch

from sgpn_arch.errors import OptionError
from sgpn_arch.ranges import Device, from_text


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is any.

    Raises:
        OptionError: this machine has no such device, or the name is none of auto, cpu, cuda, cuda:NUMBER and mps.
    """
    try:
        from_text(Device, name)
    except ValueError as error:
        raise OptionError(f"device: {error}") from error
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device '{name}': PyTorch sees no CUDA device; use cpu or auto")
    if number and int(number) >= torch.cuda.device_count():
        raise OptionError(f"device '{name}': PyTorch sees only cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise OptionError("device 'mps': PyTorch sees no Apple GPU; use cpu or auto")
    if kind == "mps" and not torch.amp.is_autocast_available("mps"):  # PyTorch 2.4
        raise OptionError("device 'mps': needs PyTorch 2.5 or newer")
    return torch.device(name)
