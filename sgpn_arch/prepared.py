"""SGPN made ready for inference: the same function of the same inputs, computed as fast as the device allows."""

import threading
from copy import deepcopy

import torch
from torch import Tensor, nn

from sgpn_arch.fusion_arch import mask_pictures
from sgpn_arch.prepared_cpu import Masks, PreparedDecoder, PreparedEncoder, Workspace

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def choose_precision(name: str, device: torch.device) -> str:
    """ "auto" is what the device multiplies in hardware: float16 on CUDA, bfloat16 on a CPU that has it, else float32.

    Raises:
        ValueError: the name is unknown, or the device cannot do it.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown: write {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type != "cuda":
        raise ValueError("precision 'fp16' needs CUDA: use bf16 or fp32 on a CPU")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "fp16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


class PreparedSGPN(nn.Module):
    """A network ready for inference, called like SGPN; :meth:`sgpn_arch.sgpn_arch.SGPN.prepare` makes it.

    It holds its own copy of the weights, as they were when it was made, and buffers of a face's activations, which stay. It
    can be called from several threads, and then works for one after the other.

    Attributes:
        size, coeff_dim, uses_render: the network's. precision: "fp32", "bf16" or "fp16".
    """

    def __init__(self, network: nn.Module, precision: str = "auto"):
        super().__init__()
        device = next(network.parameters()).device
        self.precision = choose_precision(precision, device)
        self.size, self.coeff_dim, self.uses_render = network.size, network.coeff_dim, network.uses_render
        self.check_inputs = network.check_inputs
        engine = CPUEngine if device.type == "cpu" else CUDAEngine
        self.engine = engine(network, DTYPES[self.precision])

    @torch.inference_mode()
    def forward(self, lq: Tensor, render: Tensor | None, coeffs: Tensor, return_masks: bool = False):
        """As SGPN's; the picture is float32, whatever the precision."""
        self.check_inputs(lq, render, coeffs)
        image, masks = self.engine(lq, render, coeffs, "all" if return_masks else "none")
        return (image, masks) if return_masks else image

    @torch.inference_mode()
    def with_mask_picture(self, lq: Tensor, render: Tensor | None, coeffs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pictures (N, 3, size, size), and the mask picture (N, 1, size, size) of the finest scale.

        See :func:`sgpn_arch.fusion_arch.mask_pictures`; None for a fusion without masks. Much less memory than all masks.
        """
        self.check_inputs(lq, render, coeffs)
        image, masks = self.engine(lq, render, coeffs, "picture")
        return image, mask_pictures(masks).get(self.size)


class CPUEngine:
    """Runs faces one after the other by :mod:`sgpn_arch.prepared_cpu`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        work = Workspace(dtype)
        self.encoder = PreparedEncoder(network.encoder, work)
        own = network.render_encoder
        self.render_encoder = self.encoder if own is None else PreparedEncoder(own, work)
        self.mapping = deepcopy(network.mapping)
        self.decoder = PreparedDecoder(network.decoder, work)
        self.uses_render, self.size = network.uses_render, network.size
        self.busy = threading.Lock()

    def __call__(self, lq, render, coeffs, wanted: str):
        with self.busy, torch.autocast("cpu", enabled=False):
            faces = [
                self._face(*face, wanted) for face in zip(lq, render if self.uses_render else lq, coeffs, strict=True)
            ]
        resolutions = self.decoder.resolutions[1:]
        maps = {r: zip(*(masks.at(r) for _, masks in faces), strict=True) for r in resolutions}
        return torch.cat([picture for picture, _ in faces]), {r: [torch.cat(m) for m in maps[r]] for r in resolutions}

    def _face(self, lq, render, coeffs, wanted: str) -> tuple[Tensor, Masks]:
        features_lq, latent = self.encoder(lq, "lq")
        features_3d, latents = None, [latent]
        if self.uses_render:
            features_3d, latent_3d = self.render_encoder(render, "render")
            latents.append(latent_3d)
        w = self.mapping(torch.cat([*latents, coeffs[None].to(latent.dtype)], dim=1))
        masks = Masks(wanted, self.size)
        return self.decoder(w, features_lq, features_3d, masks), masks


class CUDAEngine:
    """Runs a batch through the network itself, under autocast and in channels_last."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.dtype = dtype

    def __call__(self, lq, render, coeffs, wanted: str):
        with torch.autocast("cuda", self.dtype, enabled=self.dtype != torch.float32):
            image, masks = self.network(lq, render, coeffs, return_masks=True)
        return image, masks if wanted != "none" else {}
