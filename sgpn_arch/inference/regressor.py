"""A regressor made ready for inference: batch norms folded into the convolutions, channels-last, perhaps half precision."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fold_batch_norms(network: nn.Module) -> None:
    """Multiplies each batch norm that follows a convolution, as the next child of its parent, into the convolution.

    The network must call its children in that order, as this library's backbones do, and be in evaluation mode.
    """
    for parent in network.modules():
        before = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(parent, before, fuse_conv_bn_eval(getattr(parent, before), child))
                setattr(parent, name, nn.Identity())
            before = name if isinstance(child, nn.Conv2d) else None


class InferenceRegressor(nn.Module):
    """A copy of a regressor for inference, called as the regressor is; its coefficients are float32.

    Attributes:
        coeff_dim: the regressor's. precision: "fp32", "bf16" or "fp16".
    """

    def __init__(self, regressor: nn.Module, precision: str = "auto"):
        super().__init__()
        if precision not in ("auto", *DTYPES):
            raise ValueError(f"precision {precision!r} is unknown: write auto, {', '.join(DTYPES)}")
        on_cuda = any(parameter.is_cuda for parameter in regressor.parameters())
        self.precision = precision if precision != "auto" else "fp16" if on_cuda else "fp32"
        self.regressor = copy.deepcopy(regressor).eval().requires_grad_(False)
        if hasattr(regressor, "coeff_dim"):
            self.coeff_dim = regressor.coeff_dim
        fold_batch_norms(self.regressor)
        self.regressor.to(DTYPES[self.precision]).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """RGB image (N, 3, 224, 224) in [0, 1] -> coefficients (N, D)."""
        with torch.autocast(image.device.type, enabled=False):
            return self.regressor(image.to(DTYPES[self.precision], memory_format=torch.channels_last)).float()
