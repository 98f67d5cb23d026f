"""Loading a state dict that must fit its network in full."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def load_strictly(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict that must fit in full.

    Raises:
        ValueError: names the first tensor that is missing, left over, of another shape, or not finite. Nothing is loaded.
    """
    check_fit(network.state_dict(), state, type(network).__name__)
    network.load_state_dict(dict(state))


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], owner: str) -> None:
    """Compares a state dict with the expected tensors, whose values do not matter; they may be on the meta device.

    Raises:
        ValueError: names the first tensor that is missing, not part of ``owner``, of another shape, or not finite.
    """
    problems = [f"'{key}' is missing" for key in expected if key not in state]
    problems += [f"'{key}' is not part of {owner}" for key in state if key not in expected]
    problems += [
        f"'{key}' has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems += [f"'{key}' holds NaN or infinity" for key, value in state.items() if not torch.isfinite(value).all()]
    if problems:
        raise ValueError(problems[0] + (f" (and {len(problems) - 1} more)" if problems[1:] else ""))
