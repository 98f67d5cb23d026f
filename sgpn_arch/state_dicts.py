"""Loading a state dict that must fit its network in full, and building the network that it is for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=nn.Module)
# A network may hold so many numbers more than its state dict, for tables that are not saved; where what is saved fits, a GiB.
SPARE_NUMBERS, MOST_SPARE_NUMBERS = 1 << 22, 1 << 28
# And it may register so many modules, parameters and buffers: for each tensor of its state dict, and beside them.
PARTS_PER_TENSOR, SPARE_PARTS = 16, 1000


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

    No random numbers are drawn for weights that are replaced at once, and a network that has more numbers or layers than the
    state dict accounts for is refused before memory or time is spent on it.

    Raises:
        ValueError: as :func:`load_strictly`, or it has more layers than the state dict can fill.
    """
    numbers = sum(value.numel() for value in state.values())
    with _limited_parts(SPARE_PARTS + PARTS_PER_TENSOR * len(state), len(state)):
        try:
            with _Unfilled(numbers + SPARE_NUMBERS):
                network = build()
        except _TooLarge:
            # Shapes alone say what does not fit. This imports much of PyTorch, so it is not the usual way.
            with torch.device("meta"):
                expected = build()
            check_fit(expected.state_dict(), state, type(expected).__name__)
            try:
                with _Unfilled(numbers + MOST_SPARE_NUMBERS):
                    network = build()
            except _TooLarge:
                raise ValueError(f"{type(expected).__name__} takes more than a GiB beside its weights") from None
    load_strictly(network, state, assign=True)
    return network


def build_unfilled(state: Mapping[str, Any], build: Callable[[], Network]) -> Network:
    """The network that ``build`` builds, whose weights are whatever memory held, to be loaded with the state dict's tensors.

    Raises:
        ValueError: it has more numbers than the state dict.
    """
    try:
        with _Unfilled(sum(value.numel() for _, value in tensors_in(state)) + SPARE_NUMBERS):
            return build()
    except _TooLarge:
        raise ValueError("the shapes of its tensors describe a network of more numbers than it holds") from None


@contextlib.contextmanager
def _limited_parts(most: int, tensors: int) -> Iterator[None]:
    """Within it, at most so many modules, parameters and buffers can be registered with modules."""
    left = most

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(
                f"its description makes more than {most:,} layers and tensors, but there are {tensors:,} tensors"
            )

    hooks = [
        register(count)
        for register in (
            module_hooks.register_module_module_registration_hook,
            module_hooks.register_module_parameter_registration_hook,
            module_hooks.register_module_buffer_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _TooLarge(Exception):
    """More memory was asked for than the weights account for."""


class _Unfilled(TorchFunctionMode):
    """Within it nothing is drawn: random tensors hold whatever memory does, and at most ``most`` numbers are made."""

    DRAWN = frozenset({torch.randn, torch.rand})
    MADE = DRAWN | {torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace}
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
        make = torch.empty if func in self.DRAWN else func
        self.left -= make(*args, **{**options, "device": "meta"}).numel()
        if self.left < 0:
            raise _TooLarge
        return make(*args, **options)


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
    problems += [
        f"'{key}' holds complex numbers"
        for key, value in expected.items()
        if key in state and state[key].is_complex() and not value.is_complex()
    ]
    problems += [f"'{key}' holds NaN or infinity" for key, value in state.items() if not is_finite(value)]
    if problems:
        raise ValueError(problems[0] + (f" (and {len(problems) - 1} more)" if problems[1:] else ""))


def is_finite(value: Tensor) -> bool:
    """Whether a tensor of any type holds neither NaN nor infinity."""
    small = value.is_floating_point() and value.element_size() == 1  # PyTorch does not look at those of one byte
    return bool(torch.isfinite(value.float() if small else value).all())


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in any containers, once, and its place; containers can hold one another in billions of ways."""
    seen = set()
    left = [("", content)]
    while left:
        name, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield name or "tensor", value
        elif isinstance(value, Mapping):
            left += [(f"{name}.{key}" if name else str(key), part) for key, part in list(value.items())[::-1]]
        elif isinstance(value, list | tuple):
            left += [(f"{name}[{index}]", part) for index, part in list(enumerate(value))[::-1]]
