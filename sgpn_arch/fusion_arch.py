"""Feature fusions: how a styled convolution joins features of the photo with features of the rendering.

A fusion is found by its name in ``ARCH_REGISTRY``, so a plugin adds one by registering a subclass of
:class:`Fusion`; SGPN's option ``fusion`` then takes that name.
"""

import torch
from torch import nn

from sgpn_arch import find_arch
from sgpn_arch.layers import EqualConv2d
from sgpn_arch.ops import masked_blend
from sgpn_arch.registry import ARCH_REGISTRY


class Fusion(nn.Module):
    """What a fusion is: built for a number of channels, it makes one feature map F of three.

    A subclass sets :attr:`uses_render` and defines :meth:`forward`. Its constructor takes ``channels``, the channels of
    every map at its scale.
    """

    #: Whether the network needs an encoder branch for the rendering; if not, ``features_3d`` is None.
    uses_render = True

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(
        self, hidden: torch.Tensor, features_lq: torch.Tensor, features_3d: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Joins the features of one scale.

        Args:
            hidden: (N, C, r, r) output of the modulated convolution.
            features_lq: (N, C, r, r) features of the low-quality photo.
            features_3d: (N, C, r, r) features of the rendering, or None where ``uses_render`` is False.

        Returns:
            F (N, C, r, r), and the mask (N, C, r, r) in (0, 1) that says how much F trusts the photo, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(hidden, features_lq, features_3d)")


@ARCH_REGISTRY.register()
class AFFB(Fusion):
    """Adaptive feature fusion block: ``M = sigmoid(Conv1x1([h, F_lq, F_3d]));  F = M * F_lq + (1 - M) * F_3d``.

    The mask's bias starts at 0, i.e. M near 1/2 (a choice of ours; the paper does not say).
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.mask = EqualConv2d(3 * channels, channels, 1)

    def forward(self, hidden, features_lq, features_3d):
        logits = self.mask(torch.cat([hidden, features_lq, features_3d], dim=1))
        return masked_blend(logits, features_lq, features_3d)


@ARCH_REGISTRY.register()
class SumFusion(Fusion):
    """``F = F_lq + F_3d``: the paper's ablation B, without AFFB."""

    def forward(self, hidden, features_lq, features_3d):
        return features_lq + features_3d, None


@ARCH_REGISTRY.register()
class LQOnly(Fusion):
    """``F = F_lq``: the paper's ablation A, without features of the rendering; also what SGPN does at 4x4."""

    uses_render = False

    def forward(self, hidden, features_lq, features_3d):
        return features_lq, None


def find_fusion(name: str) -> type[Fusion]:
    """Returns the fusion registered as ``name``.

    Raises:
        ValueError: nothing, or something that is not a :class:`Fusion`, is registered by that name.
    """
    found = find_arch(name)
    if not (isinstance(found, type) and issubclass(found, Fusion)):
        raise ValueError(
            f"fusion {name!r} is registered but is no Fusion; choose AFFB, SumFusion, LQOnly or a subclass of Fusion"
        )
    return found


def mask_pictures(masks: dict[int, list[torch.Tensor]]) -> dict[int, torch.Tensor]:
    """The paper's mask pictures: per resolution, the channel mean of the last AFFB mask.

    Args:
        masks: as SGPN returns them with ``return_masks``: resolution -> list of (N, C, r, r).

    Returns:
        resolution -> (N, 1, r, r) in (0, 1); 1 means that the photo is trusted, 0 the rendering. That the second of the
        two masks of a scale is shown is a choice of ours.
    """
    return {resolution: pair[-1].mean(dim=1, keepdim=True) for resolution, pair in masks.items() if pair}
