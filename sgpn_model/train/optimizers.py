"""The optimisers that option files may name: PyTorch's Adam and AdamW, and Muon for short runs."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from pydantic import PlainValidator
from torch import Tensor, nn

from sgpn_arch.errors import OptionError, Problem, nearest
from sgpn_arch.ranges import Amount, Positive, Told
from sgpn_arch.schema import Options, Pair

# Newton-Schulz iteration for orthogonal matrices, with the coefficients of Jordan et al. 2024.
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
Betas = Pair[Annotated[float, Ge(0), Lt(1)]]
# Less wide matrices (ToRGB, vectors, scalars) are moved by Adam.
NARROWEST = 16


class OptimizerOptions(Options):
    """``train.optim_NAME``: the arguments of an optimiser, which ``type`` names."""

    type: str
    """The optimiser's name."""


class _AdamOptions(OptimizerOptions):
    """What Adam and AdamW have in common."""

    lr: Positive = 1e-3
    """Learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay of the means of the gradient and of its square."""
    weight_decay: Amount = 0.0
    """Pull of the weights towards 0."""
    eps: Positive = 1e-8
    """Keeps divisions finite."""


class AdamOptions(_AdamOptions):
    """PyTorch's Adam."""

    type: Literal["Adam"] = "Adam"
    """The optimiser's name."""


class AdamWOptions(_AdamOptions):
    """PyTorch's AdamW: Adam whose weight decay does not go through its means."""

    type: Literal["AdamW"] = "AdamW"
    """The optimiser's name."""
    weight_decay: Amount = 0.01
    """Pull of the weights towards 0."""


class MuonOptions(OptimizerOptions):
    """Muon, for short runs."""

    type: Literal["Muon"] = "Muon"
    """The optimiser's name."""
    lr: Positive = 6e-3
    """Root mean square of a step."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Momentum of the matrices, with Nesterov's look ahead."""
    betas: Betas = (0.9, 0.99)
    """Adam's betas, for parameters that are not matrices."""
    eps: Positive = 1e-8
    """Keeps divisions finite."""


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal, so that no direction of a layer learns faster than another.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. A convolution's kernel counts
    as a matrix of out_channels rows. Choices of ours: what is narrower than 16 rows or columns goes by Adam, and matrices
    move as far, in root mean square, as Adam's first step would, so that one ``lr`` fits both.

    Args:
        params: parameters, or groups of them, as for every optimiser of PyTorch.
        options: lr, momentum, betas and eps of :class:`MuonOptions`.
    """

    def __init__(self, params, **options):
        super().__init__(params, MuonOptions.read(options).model_dump(exclude={"type"}))

    @torch.no_grad()
    def step(self, closure=None):
        """One step; ``closure`` computes the loss anew, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = self._matrix_step if _is_matrix(parameter) else self._adam_step
                    parameter.add_(move(parameter, parameter.grad, group), alpha=-group["lr"])
        return loss

    def _matrix_step(self, parameter: Tensor, gradient: Tensor, group: dict) -> Tensor:
        mean = self._kept(parameter, "mean")
        mean.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(mean, group["momentum"]).reshape(len(parameter), -1)
        return (orthogonal(ahead, group["eps"]) * max(ahead.shape) ** 0.5).reshape(parameter.shape)

    def _adam_step(self, parameter: Tensor, gradient: Tensor, group: dict) -> Tensor:
        mean, square = self._kept(parameter, "mean"), self._kept(parameter, "square")
        state, (first, second) = self.state[parameter], group["betas"]
        state["step"] = step = state.get("step", 0) + 1
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        return mean / (1 - first**step) / ((square / (1 - second**step)).sqrt() + group["eps"])

    def _kept(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


def orthogonal(matrix: Tensor, eps: float = 1e-8) -> Tensor:
    """The (m, n) ``matrix`` with all singular values brought near 1 (0.7 to 1.2), of its own type.

    Newton-Schulz's polynomial of X is P X with P a polynomial of X X^T, so all iterations work with small square matrices,
    and the large one is multiplied twice only.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    wide = wide / (torch.linalg.matrix_norm(wide) + eps)
    a, b, c = COEFFICIENTS
    gram = wide @ wide.t()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(ITERATIONS):
        factor = a * identity + b * gram + c * gram @ gram
        gram, product = factor @ gram @ factor, factor @ product
    result = product @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.t()


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= NARROWEST


# ---------------------------------------------------------------------------------------------------------------------
# By name

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], type[OptimizerOptions]]] = {
    "Adam": (torch.optim.Adam, AdamOptions),
    "AdamW": (torch.optim.AdamW, AdamWOptions),
    "Muon": (Muon, MuonOptions),
}


def read_optimizer(section: Any) -> OptimizerOptions:
    """What an option file's ``{type: Adam, lr: ...}`` means; Adam where there is no type.

    Raises:
        OptionError: the name is unknown, or an argument is wrong.
    """
    if section is None:
        raise OptionError(Problem("", "this section is missing; write for instance {type: Adam, lr: 2.0e-3}"))
    kind = section.get("type", "Adam") if isinstance(section, Mapping) else "Adam"
    if not isinstance(kind, str) or kind not in OPTIMIZERS:
        raise OptionError(f"type: unknown optimiser '{kind}'{nearest(str(kind), OPTIMIZERS)}")
    return OPTIMIZERS[kind][1].read(section)


def build_optimizer(options: OptimizerOptions, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of these parameters."""
    return OPTIMIZERS[options.type][0](parameters, **options.model_dump(exclude={"type"}))


Optimizer = Annotated[
    OptimizerOptions, PlainValidator(read_optimizer), Told("an optimiser, such as {type: Adam, lr: 2.0e-3}")
]
