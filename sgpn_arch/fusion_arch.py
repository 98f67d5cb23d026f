"""Feature fusions: how a styled convolution joins features of the photo with features of the rendering.

A fusion is found by its name in ``ARCH_REGISTRY``, so a plugin adds one by registering a subclass of
:class:`Fusion`; SGPN's option ``fusion`` then takes that name.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sgpn_arch import find_arch
from sgpn_arch.layers import EqualConv2d
from sgpn_arch.ops import masked_blend
from sgpn_arch.registry import ARCH_REGISTRY


class Fusion(nn.Module):
    """What a fusion is: built for a number of channels, it makes one feature map F of three.

    A subclass sets :attr:`uses_render` and defines :meth:`forward`. Its constructor takes ``channels``, the channels of
    every map at its scale. :meth:`pass_photo` and :meth:`for_strips` are up to it.
    """

    #: Whether the network needs an encoder branch for the rendering; if not, ``features_3d`` is None.
    uses_render = True
    #: The first channel of F that :meth:`pass_photo` gives to the photo's features.
    photo_channel = 0
    #: Whether :meth:`pass_photo` needs ``features_3d`` to be 0 in the channels that pass, since F always has their sum.
    adds_render = False

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        # A class with a forward of its own does not inherit what was true of another one's.
        for method in ("pass_photo", "for_strips") if "forward" in vars(cls) else ():
            if method not in vars(cls):
                setattr(cls, method, getattr(Fusion, method))

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

    def pass_photo(self, count: int) -> None:
        """Sets the parameters so that the photo passes: ``F[:, photo_channel + i] == features_lq[:, i]`` for i < count,
        whatever the other maps are (but see :attr:`adds_render`). A network can then begin as the identity
        (``train.start_from_input``).

        Raises:
            ValueError: this fusion cannot, or does not say how.
        """
        raise ValueError(
            f"{type(self).__name__} does not say how it passes the photo: define {type(self).__name__}.pass_photo"
        )

    def for_strips(self, work) -> "StripFusion | None":
        """Its fast form for the CPU, which holds its own copy of the weights; None: :meth:`forward` is called on whole maps.

        Args:
            work: a :class:`sgpn_arch.inference.strips.Workspace`, whose buffers hold what the fast form returns.
        """
        return None


#: A fusion of one strip: hidden (P, C), the factors (C,) that demodulate it, and rows (P, C) of the features of the photo and
#: of the rendering (or None) -> F (P, C) and the mask (P, C) or None. P is the number of pixels.
StripFusion = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]

TRUST = 8.0  # bias of a mask that is to be 1: sigmoid(8) = 0.9997


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

    @torch.no_grad()
    def pass_photo(self, count):
        self.mask.weight[:count] = 0
        self.mask.bias[:count] = TRUST

    def for_strips(self, work):
        weight = (self.mask.weight * self.mask.scale).detach()[:, :, 0, 0].t()
        of_hidden, of_lq, of_3d = (part.to(work.dtype).contiguous() for part in weight.chunk(3))
        bias = self.mask.bias.detach().to(work.dtype, copy=True)

        def fuse(hidden, demodulation, lq, render):
            mask, fused = (work.take(name, *lq.shape) for name in ("mask", "fused"))
            torch.addmm(bias, hidden, of_hidden * demodulation[:, None], out=mask)
            mask.addmm_(lq, of_lq).addmm_(render, of_3d).sigmoid_()
            return torch.lerp(render, lq, mask, out=fused), mask

        return fuse


@ARCH_REGISTRY.register()
class SumFusion(Fusion):
    """``F = F_lq + F_3d``: the paper's ablation B, without AFFB."""

    adds_render = True

    def forward(self, hidden, features_lq, features_3d):
        return features_lq + features_3d, None

    def pass_photo(self, count):
        pass  # which it does where the rendering's features are 0

    def for_strips(self, work):
        return lambda _, __, lq, render: (torch.add(lq, render, out=work.take("fused", *lq.shape)), None)


@ARCH_REGISTRY.register()
class LQOnly(Fusion):
    """``F = F_lq``: the paper's ablation A, without features of the rendering; also what SGPN does at 4x4."""

    uses_render = False

    def forward(self, hidden, features_lq, features_3d):
        return features_lq, None

    def pass_photo(self, count):
        pass  # which is all that it does

    def for_strips(self, work):
        return lambda _, __, lq, render: (lq, None)


@ARCH_REGISTRY.register()
class ChannelSplitSFT(Fusion):
    """``F = [h_1, (1 + scale(F_lq)) * h_2 + shift(F_lq)]``: half of the prior's channels as they are, half modulated.

    The channel-split spatial feature transform with which GFP-GAN joins photo and prior (Wang et al. 2021), to compare AFFB
    with. It stands where SGPN has AFFB, so F stands beside h rather than in its place (a choice of ours, which keeps all
    else alike). Scale and shift are 1x1 convolutions. The rendering is not used.
    """

    uses_render = False

    def __init__(self, channels: int):
        super().__init__(channels)
        self.photo_channel = channels // 2
        self.modulated = channels - self.photo_channel
        self.scale = EqualConv2d(channels, self.modulated, 1)
        self.shift = EqualConv2d(channels, self.modulated, 1)
        nn.init.zeros_(self.scale.weight)

    def forward(self, hidden, features_lq, features_3d):
        kept, changed = hidden.split([self.photo_channel, self.modulated], dim=1)
        changed = changed * (1 + self.scale(features_lq)) + self.shift(features_lq)
        return torch.cat([kept, changed], dim=1), None

    @torch.no_grad()
    def pass_photo(self, count):
        if count > self.modulated:
            raise ValueError(
                f"ChannelSplitSFT modulates {self.modulated} of {self.channels} channels and cannot pass {count} of the photo: "
                "choose a larger width"
            )
        self.scale.weight[:count] = 0
        self.scale.bias[:count] = -1  # nothing of the prior's
        self.shift.weight[:count] = torch.eye(self.channels)[:count, :, None, None] / self.shift.scale
        self.shift.bias[:count] = 0


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
