"""SGPN and its regressor made ready for inference: the same functions of the same inputs, as fast as the device allows."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sgpn_arch.fusion_arch import mask_pictures
from sgpn_arch.inference.strips import Masks, StripDecoder, StripEncoder, Workspace
from sgpn_arch.layers import check_inputs, within_patches

if TYPE_CHECKING:
    from sgpn_arch.sgpn_arch import SGPN

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)

# How many recorded batch sizes a prepared network keeps on a GPU.
GRAPHS = 4


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
    return "bf16" if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


class InferenceSGPN(nn.Module):
    """A network ready for inference, called like SGPN; :meth:`sgpn_arch.sgpn_arch.SGPN.for_inference` makes it.

    It holds its own copy of the weights, as they were when it was made, and buffers of a face's activations, which stay. It
    can be called from several threads, and then works for one after the other.

    Attributes:
        size, coeff_dim, uses_render: the network's. precision: "fp32", "bf16" or "fp16".
    """

    def __init__(self, network: "SGPN", precision: str = "auto"):
        super().__init__()
        device = next(network.parameters()).device
        self.precision = choose_precision(precision, device)
        self.size, self.coeff_dim, self.uses_render = network.size, network.coeff_dim, network.uses_render
        self.finest = network.size // network.patch
        engine = CPUEngine if device.type == "cpu" else DeviceEngine
        self.engine = engine(network, DTYPES[self.precision])

    @torch.inference_mode()
    def forward(self, lq: Tensor, render: Tensor | None, coeffs: Tensor, return_masks: bool = False):
        """As SGPN's; the picture is float32, whatever the precision."""
        check_inputs(self, lq, render, coeffs)
        image, masks = self.engine(lq, render, coeffs, "all" if return_masks else "none")
        return (image, masks) if return_masks else image

    @torch.inference_mode()
    def with_mask_picture(self, lq: Tensor, render: Tensor | None, coeffs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pictures (N, 3, size, size), and the mask picture (N, 1, r, r) of the finest scale, r = size / patch.

        See :func:`sgpn_arch.fusion_arch.mask_pictures`; None for a fusion without masks. Much less memory than all masks.
        """
        check_inputs(self, lq, render, coeffs)
        image, masks = self.engine(lq, render, coeffs, "picture")
        return image, mask_pictures(masks).get(self.finest)


class CPUEngine:
    """Runs faces one after the other by :mod:`sgpn_arch.inference.strips`."""

    def __init__(self, network: "SGPN", dtype: torch.dtype):
        work = Workspace(dtype)
        self.encoder = StripEncoder(network.encoder, work)
        own = network.render_encoder
        self.render_encoder = self.encoder if own is None else StripEncoder(own, work)
        self.mapping = deepcopy(network.mapping)
        self.decoder = StripDecoder(network.decoder, work)
        self.uses_render, self.finest = network.uses_render, network.size // network.patch
        self.patch = network.patch
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
        masks = Masks(wanted, self.finest)
        picture = self.decoder(w, features_lq, features_3d, masks)
        return picture if self.patch == 1 else picture + within_patches(lq[None], self.patch), masks


class DeviceEngine:
    """Runs a batch through a copy of the network, in channels_last and under autocast, recorded as a CUDA graph.

    A graph replays the batch's kernels without asking Python for each; there is one for every batch size and kind of result,
    and the latest :data:`GRAPHS` are kept. Its memory is what one batch of that size takes. Other devices, such as Apple's mps,
    have no such graphs and run the network itself.
    """

    def __init__(self, network: "SGPN", dtype: torch.dtype):
        copy = deepcopy(network).eval().requires_grad_(False)
        self.network = copy.to(memory_format=torch.channels_last)
        self.dtype = dtype
        self.graphs: OrderedDict[tuple, Graph] = OrderedDict()
        self.busy = threading.Lock()

    def __call__(self, lq, render, coeffs, wanted: str):
        inputs = (lq, render if self.network.uses_render else lq, coeffs)  # a network without rendering ignores it
        if lq.device.type != "cuda":
            with self.busy:
                return self._run(wanted, *inputs)
        key = (wanted, *((x.shape, x.dtype) for x in inputs))
        with self.busy, torch.cuda.device(lq.device):
            if key not in self.graphs:
                while len(self.graphs) >= GRAPHS:
                    self.graphs.popitem(last=False)
                self.graphs[key] = Graph(partial(self._run, wanted), inputs)
            self.graphs.move_to_end(key)
            return self.graphs[key](inputs)

    def _run(self, wanted: str, lq, render, coeffs):
        with torch.autocast(lq.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if wanted == "none":
                return self.network(lq, render, coeffs), {}
            image, masks = self.network(lq, render, coeffs, return_masks=True)
        finest = self.network.size // self.network.patch
        return image, masks if wanted == "all" else {finest: masks[finest]}


class Graph:
    """A function of CUDA tensors, recorded once for inputs like the given ones and replayed for others."""

    def __init__(self, function, examples: Sequence[Tensor]):
        self.inputs = [torch.empty_like(x, memory_format=_layout(x)).copy_(x) for x in examples]
        # Libraries choose their algorithms and take their memory in the first calls, which a recording must not see.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, inputs: Sequence[Tensor]):
        """The function's results, in memory of their own."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        image, masks = self.outputs
        return image.clone(), {r: [mask.clone() for mask in pair] for r, pair in masks.items()}


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


# ---------------------------------------------------------------------------------------------------------------------
# The regressor: batch norms folded into the convolutions, channels-last, perhaps half precision


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
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown: write {', '.join(PRECISIONS)}")
        on_cuda = any(parameter.is_cuda for parameter in regressor.parameters())
        self.precision = precision if precision != "auto" else "fp16" if on_cuda else "fp32"
        self.regressor = deepcopy(regressor).eval().requires_grad_(False)
        if hasattr(regressor, "coeff_dim"):
            self.coeff_dim = regressor.coeff_dim
        fold_batch_norms(self.regressor)
        self.regressor.to(DTYPES[self.precision]).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """RGB image (N, 3, 224, 224) in [0, 1] -> coefficients (N, D)."""
        with torch.autocast(image.device.type, enabled=False):
            return self.regressor(image.to(DTYPES[self.precision], memory_format=torch.channels_last)).float()
