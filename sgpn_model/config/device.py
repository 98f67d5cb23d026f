"""Which device an option means."""

import torch

from sgpn_arch.errors import OptionError


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is any.

    Raises:
        OptionError: CUDA is asked for and there is none, or the name is unknown.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device '{name}' is unknown: write auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device '{name}': PyTorch sees no CUDA device; use cpu or auto")
    return device
