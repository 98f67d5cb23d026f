"""Loading a state dict that must fit its network in full."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def load_strictly(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict that must fit in full.

    Raises:
        ValueError: names the first tensor that is missing, left over, of another shape, or not finite. Nothing is loaded.
    """
    check_fit(network, state)
    network.load_state_dict(dict(state))


def check_fit(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError as :func:`load_strictly` does; the network may be on the meta device."""
    own = network.state_dict()
    problems = [f"'{key}' is missing" for key in own if key not in state]
    problems += [f"'{key}' is not part of {type(network).__name__}" for key in state if key not in own]
    problems += [
        f"'{key}' has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems += [f"'{key}' holds NaN or infinity" for key, value in state.items() if not torch.isfinite(value).all()]
    if problems:
        raise ValueError(problems[0] + (f" (and {len(problems) - 1} more)" if problems[1:] else ""))
