"""PhotoOnly, which lets any network from photo to photo, such as BasicSR's and GFP-GAN's, stand where SGPN stands."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgpn_arch import build_network
from sgpn_arch.layers import check_image
from sgpn_arch.registry import ARCH_REGISTRY

# name -> lowest and highest colour
SPANS = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0)}


@ARCH_REGISTRY.register()
class PhotoOnly(nn.Module):
    """A registered network with the call of its own, called as SGPN is; rendering and coefficients are left out.

    Args:
        network: ``type`` and arguments of the network; its first argument when called is the photo, (N, 3, size, size) RGB.
        size: height and width of photo and result, pixels.
        span: the colours that it takes and returns: "-1..1" (GFP-GAN's) or "0..1" (BasicSR's).
        call: further keywords of its call, such as ``{return_rgb: false, randomize_noise: false}``.

    Raises:
        ValueError: ``network`` is unknown or takes other arguments, or ``span`` is unknown.
    """

    #: The network needs no rendering.
    uses_render = False

    def __init__(
        self,
        network: Mapping[str, Any],
        size: int = 512,
        span: str = "-1..1",
        call: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if span not in SPANS:
            raise ValueError(f"span is {span!r}; it may be {' or '.join(SPANS)}")
        self.network = build_network(network)
        self.size = size
        self.low, self.high = SPANS[span]
        self.call = dict(call or {})

    def forward(self, lq: Tensor, render: Tensor | None, coeffs: Tensor | None, return_masks: bool = False):
        """As SGPN's: (N, 3, size, size) RGB in [-1, 1] -> the same; with ``return_masks`` a pair, whose second part is empty.

        Where the network returns several things, as GFP-GAN does, the picture is the first.

        Raises:
            ValueError: ``lq`` is of another size, or what the network makes of it is.
        """
        check_image("lq", lq, self.size)
        found = self.network((lq + 1) / 2 * (self.high - self.low) + self.low, **self.call)
        image = found if isinstance(found, torch.Tensor) else found[0]
        if image.shape != lq.shape:
            raise ValueError(
                f"{type(self.network).__name__} makes {tuple(image.shape)} of {tuple(lq.shape)}: PhotoOnly needs a network whose "
                "pictures keep their size, such as one with scale 1"
            )
        image = (image - self.low) / (self.high - self.low) * 2 - 1
        return (image, {}) if return_masks else image
