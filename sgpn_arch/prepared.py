"""SGPN made ready for inference: the same function of the same inputs, computed as fast as the device allows."""

import torch
from torch import nn

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_precision(name: str, device: torch.device) -> str:
    """ "auto" is what the device multiplies in hardware: float16 on CUDA, bfloat16 on a CPU that has it, else float32.

    Raises:
        ValueError: the name is unknown, or the device cannot do it.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision '{name}' is unknown: write {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type != "cuda":
        raise ValueError("precision 'fp16' needs CUDA: use bf16 or fp32 on a CPU")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "fp16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


class PreparedSGPN(nn.Module):
    """A network ready for inference, called like SGPN; :meth:`sgpn_arch.sgpn_arch.SGPN.prepare` makes it.

    Attributes:
        size, coeff_dim, uses_render: the network's. precision: "fp32", "bf16" or "fp16".
    """

    def __init__(self, network: nn.Module, precision: str = "auto"):
        super().__init__()
        device = next(network.parameters()).device
        self.precision = choose_precision(precision, device)
        self.network = network.eval().requires_grad_(False)
        self.size, self.coeff_dim, self.uses_render = network.size, network.coeff_dim, network.uses_render

    @torch.inference_mode()
    def forward(self, lq, render, coeffs, return_masks: bool = False):
        """As SGPN's; the image is float32, whatever the precision."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        with torch.autocast(lq.device.type, dtype, enabled=self.precision != "fp32"):
            return self.network(lq, render, coeffs, return_masks)
