"""Loading a state dict that must fit its network in full, and building the network that it is for."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# A network may hold so many numbers more than its state dict, for tables that are not saved.
SPARE_NUMBERS = 1 << 22


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], assign: bool = False) -> None:
    """Loads a state dict that must fit in full.

    Args:
        assign: the network takes the state dict's tensors themselves, so that they are not in memory twice.

    Raises:
        ValueError: names the first tensor that is missing, left over, of another shape, or not finite. Nothing is loaded.
    """
    check_fit(network.state_dict(), state, type(network).__name__)
    network.load_state_dict(dict(state), assign=assign)


def build_for(state: Mapping[str, Tensor], build: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``build`` builds, with the state dict's tensors as its own.

    No random numbers are drawn for weights that are replaced at once, and a network that is larger than the state dict is
    refused before memory is spent on it.

    Raises:
        ValueError: as :func:`load_strictly`.
    """
    try:
        with _Unfilled(SPARE_NUMBERS + sum(value.numel() for value in state.values())):
            network = build()
    except _TooLarge:
        # Shapes alone say what does not fit. This imports much of PyTorch, so it is not the usual way.
        with torch.device("meta"):
            expected = build()
        check_fit(expected.state_dict(), state, type(expected).__name__)
        network = build()
    load_strictly(network, state, assign=True)
    return network


class _TooLarge(Exception):
    """More memory was asked for than the weights account for."""


class _Unfilled(TorchFunctionMode):
    """Within it nothing is drawn: random tensors hold whatever memory does, and at most ``most`` numbers are made."""

    DRAWN = frozenset({torch.randn, torch.rand})
    MADE = DRAWN | {torch.empty, torch.zeros, torch.ones}
    FILLS = frozenset({Tensor.normal_, Tensor.uniform_})
    # These arrive as a whole, and what they call does not.
    FILLS |= {
        getattr(nn.init, name) for name in dir(nn.init) if name.endswith(("normal_", "uniform_")) and name[0] != "_"
    }

    def __init__(self, most: int):
        super().__init__()
        self.left = most

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.FILLS:
            return args[0] if args else kwargs["tensor"]
        if func not in self.MADE:
            return func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if key != "generator"}
        self.left -= torch.empty(*args, **{**options, "device": "meta"}).numel()
        if self.left < 0:
            raise _TooLarge
        return torch.empty(*args, **options) if func in self.DRAWN else func(*args, **kwargs)


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
