"""The optimisers that option files may name: PyTorch's Adam and AdamW, and Muon for short runs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sgpn_arch.errors import nearest
from sgpn_model.config.reading import OptionError, check_keys

# Newton-Schulz iteration for orthogonal matrices, with the coefficients of Jordan et al. 2024.
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Less wide matrices (ToRGB, vectors, scalars) are moved by Adam.
NARROWEST = 16


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal, so that no direction of a layer learns faster than another.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. A convolution's kernel counts
    as a matrix of out_channels rows. Choices of ours: what is narrower than 16 rows or columns goes by Adam, and matrices
    move as far, in root mean square, as Adam's first step would, so that one ``lr`` fits both.

    Args:
        params: parameters, or groups of them, as for every optimiser of PyTorch.
        lr: root mean square of a step.
        momentum: of the matrices, with Nesterov's look ahead.
        betas: Adam's. eps: keeps divisions finite.
    """

    def __init__(self, params, lr: float = 6e-3, momentum: float = 0.95, betas=(0.9, 0.99), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps})

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
                    parameter.add_(move(parameter, group), alpha=-group["lr"])
        return loss

    def _matrix_step(self, parameter: Tensor, group: dict) -> Tensor:
        mean = self._kept(parameter, "mean")
        mean.lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(mean, group["momentum"]).reshape(len(parameter), -1)
        return (orthogonal(ahead, group["eps"]) * max(ahead.shape) ** 0.5).reshape(parameter.shape)

    def _adam_step(self, parameter: Tensor, group: dict) -> Tensor:
        mean, square = self._kept(parameter, "mean"), self._kept(parameter, "square")
        state, (first, second) = self.state[parameter], group["betas"]
        state["step"] = step = state.get("step", 0) + 1
        mean.lerp_(parameter.grad, 1 - first)
        square.lerp_(parameter.grad.square(), 1 - second)
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


# Name -> class and the arguments that an option file may give.
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], frozenset[str]]] = {
    "Adam": (torch.optim.Adam, frozenset({"lr", "betas", "weight_decay", "eps"})),
    "AdamW": (torch.optim.AdamW, frozenset({"lr", "betas", "weight_decay", "eps"})),
    "Muon": (Muon, frozenset({"lr", "momentum", "betas", "eps"})),
}


def find_optimizer(section: Mapping, where: str) -> type[torch.optim.Optimizer]:
    """The class that an option file's ``{type: Adam, lr: ...}`` names, whose keys are checked.

    Raises:
        OptionError: it is unknown, or does not take one of the arguments.
    """
    kind = str(section.get("type", "Adam"))
    if kind not in OPTIMIZERS:
        raise OptionError(f"{where}.type: unknown optimiser '{kind}'{nearest(kind, OPTIMIZERS)}")
    found, arguments = OPTIMIZERS[kind]
    check_keys(section, arguments | {"type"}, where)
    return found
