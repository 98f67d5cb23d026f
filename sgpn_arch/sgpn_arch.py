"""SGPN, the restoration network: an encoder, a mapping network and a decoder, as in the paper's figure 2.

Source: "Blind Face Restoration via Integrating Face Shape and Generative Priors", CVPR 2022.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from sgpn_arch.fusion_arch import LQOnly, find_fusion
from sgpn_arch.inference.network import InferenceSGPN
from sgpn_arch.layers import (
    ConstantInput,
    ConvLayer,
    EqualLinear,
    PixelNorm,
    StyledConv,
    ToRGB,
    channels_at,
    check_inputs,
    quick_layout,
    resolutions,
    within_patches,
)
from sgpn_arch.ranges import Count, MappingLayers, Patch, PictureSize, Positive
from sgpn_arch.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class SGPN(nn.Module):
    """Restores a face from its degraded photo, the rendering of its 3D shape and the shape's coefficients.

    The latent is z = [z_lq, z_3d, coefficients]. With a fusion that does not use the rendering (``LQOnly``, the paper's
    ablation A) there is no branch for it and z = [z_lq, coefficients] (a choice of ours).

    Args:
        size: height and width of photo, rendering and result, a power of two from 64 to 1024.
        width: factor on the channels at high resolutions; see :func:`sgpn_arch.layers.channels_at`.
        max_channels: most channels at any resolution.
        style_dim: length of w.
        latent_dim: length of the encoder's latent, for each branch.
        coeff_dim: length of the shape's coefficient vector.
        mapping_layers: linear layers of the mapping network (the paper says 2, the released network has 3).
        mapping_lr_mul: their learning-rate multiplier.
        fusion: registered name of the fusion: AFFB, SumFusion, LQOnly, ChannelSplitSFT or a plugin's.
        share_encoder: whether photo and rendering are encoded with the same weights (as in the released network).
        min_channels: fewest channels at any resolution.
        patch: side of the square of pixels that is one place of the finest maps, which then have size / patch pixels a side: a
            network for 512 px costs little more than one for 256 px (a choice of ours; the paper's is 1). How the photo's pixels
            differ within a square is added to the decoder's picture, so that this has to know nothing but their mean.

    Raises:
        ValueError: an argument is out of range, or ``fusion`` is unknown.
    """

    def __init__(
        self,
        size: PictureSize = 512,
        width: Positive = 1.0,
        max_channels: Count = 512,
        style_dim: Count = 512,
        latent_dim: Count = 256,
        coeff_dim: Count = 257,
        mapping_layers: MappingLayers = 3,
        mapping_lr_mul: Positive = 0.01,
        fusion: str = "AFFB",
        share_encoder: bool = True,
        min_channels: Count = 8,
        patch: Patch = 1,
    ):
        super().__init__()
        self.size, self.patch = size, patch
        self.coeff_dim = coeff_dim
        fusion_class = find_fusion(fusion)
        self.uses_render = fusion_class.uses_render
        channels = {r: channels_at(r, width, max_channels, min_channels) for r in resolutions(size, patch)}

        self.encoder = Encoder(channels, latent_dim, patch)
        own_encoder = self.uses_render and not share_encoder
        self.render_encoder = Encoder(channels, latent_dim, patch) if own_encoder else None
        branches = 2 if self.uses_render else 1
        self.mapping = MappingNetwork(branches * latent_dim + coeff_dim, style_dim, mapping_layers, mapping_lr_mul)
        self.decoder = Decoder(channels, style_dim, fusion_class, patch)

    @classmethod
    def from_released(cls, state_dict: Mapping[str, torch.Tensor]) -> "SGPN":
        """The network of the authors' ``sgpn.pth``, in evaluation mode; its size and widths are read from the tensors.

        Raises:
            ValueError: names the first tensor that is missing, unknown, of a shape that does not fit, or not finite.
        """
        from sgpn_arch.released_names import load_sgpn, sgpn_options
        from sgpn_arch.state_dicts import build_unfilled

        options = sgpn_options(state_dict)
        network = build_unfilled(state_dict, lambda: cls(**options))
        load_sgpn(network, state_dict)
        return network.eval()

    def forward(
        self,
        lq: torch.Tensor,
        render: torch.Tensor | None,
        coeffs: torch.Tensor,
        return_masks: bool = False,
    ):
        """Restores a batch of faces.

        Args:
            lq: (N, 3, size, size) low-quality photos, RGB in [-1, 1].
            render: (N, 3, size, size) renderings, RGB in [-1, 1], -1 outside the face; not looked at, and may be None,
                where the fusion does not use it.
            coeffs: (N, coeff_dim) coefficients of the face shapes.
            return_masks: whether to return the fusion's masks too.

        Returns:
            (N, 3, size, size) RGB, about [-1, 1], not clamped. With ``return_masks`` a pair: the image, and
            resolution -> list of the two masks (N, C, r, r) of that scale, empty for a fusion without masks.

        Raises:
            ValueError: an input is missing or has the wrong shape.
        """
        check_inputs(self, lq, render, coeffs)
        features_lq, features_3d, latents = self._encode(lq, render)
        w = self.mapping(torch.cat([*latents, coeffs.to(latents[0].dtype)], dim=1))
        image, masks = self.decoder(w, features_lq, features_3d)
        if self.patch > 1:
            image = image + within_patches(lq, self.patch)
        return (image, masks) if return_masks else image

    def for_inference(self, precision: str = "auto") -> "InferenceSGPN":
        """The same network made ready for inference: called alike, without gradients, several times faster.

        Args:
            precision: "fp32", "bf16", "fp16" (CUDA only) or "auto"; see :func:`sgpn_arch.inference.network.choose_precision`.
        """
        return InferenceSGPN(self, precision)

    def _encode(self, lq, render):
        """Encodes both branches; features are resolution -> (N, C, r, r), None for a branch that is not there."""
        if not self.uses_render:
            features, latent = self.encoder(lq)
            return features, None, [latent]
        if self.render_encoder is not None:
            features_lq, latent_lq = self.encoder(lq)
            features_3d, latent_3d = self.render_encoder(render)
            return features_lq, features_3d, [latent_lq, latent_3d]
        # One pass over a batch of twice the size is quicker than two. len() and chunk() would write the batch's size into an
        # exported program as a number; its shape stays open.
        batch = lq.shape[0]
        features, latent = self.encoder(torch.cat([lq, render.to(lq.dtype)]))
        features_lq = {r: both[:batch] for r, both in features.items()}
        features_3d = {r: both[batch:] for r, both in features.items()}
        return features_lq, features_3d, [latent[:batch], latent[batch:]]


class Encoder(nn.Module):
    """A picture -> features at every scale and a latent: a 1x1 convolution, then stride 2 down to 4x4.

    Args:
        channels: resolution -> channels, for 4 up to the picture's size / patch.
        latent_dim: length of the latent.
        patch: side of the squares of pixels that the 1x1 convolution sees as one.
    """

    def __init__(self, channels: dict[int, int], latent_dim: int, patch: int = 1):
        super().__init__()
        self.patch = patch
        self.resolutions = sorted(channels, reverse=True)
        widths = [channels[r] for r in self.resolutions]
        self.stages = nn.ModuleList([ConvLayer(3 * patch**2, widths[0], 1)])
        for before, after in zip(widths, widths[1:], strict=False):
            self.stages.append(ConvLayer(before, after, 3, downsample=True))
        self.to_latent = EqualLinear(widths[-1] * 4 * 4, latent_dim, activate=True)

    def forward(self, image: torch.Tensor) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """(N, 3, S, S) -> resolution -> (N, C, r, r), and (N, latent_dim)."""
        features, x = {}, quick_layout(functional.pixel_unshuffle(image, self.patch))
        for resolution, stage in zip(self.resolutions, self.stages, strict=True):
            features[resolution] = x = stage(x)
        return features, self.to_latent(x.flatten(1))


class MappingNetwork(nn.Module):
    """z -> w: PixelNorm over the whole vector, then linear layers with fused leaky ReLU."""

    def __init__(self, in_features: int, style_dim: int, layers: int, lr_mul: float):
        super().__init__()
        if not 1 <= layers <= 64:
            raise ValueError(f"mapping_layers is {layers!r}; expected 1 to 64")
        widths = [in_features] + [style_dim] * layers
        self.norm = PixelNorm()
        self.layers = nn.ModuleList(
            EqualLinear(before, after, lr_mul=lr_mul, activate=True)
            for before, after in zip(widths, widths[1:], strict=False)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(N, in_features) -> (N, style_dim)."""
        w = self.norm(z)
        for layer in self.layers:
            w = layer(w)
        return w


class Decoder(nn.Module):
    """StyleGAN2's synthesis from 4x4 up, with spatial features concatenated where StyleGAN2 adds noise.

    Args:
        channels: resolution -> channels, for 4 up to the picture's size / patch.
        style_dim: length of w.
        fusion: class of the fusion from 8x8 up; at 4x4 only the photo's features are used.
        min_channels: fewest channels at any resolution.
        patch: side of the square of pixels that the last ToRGB makes of each place.
    """

    def __init__(self, channels: dict[int, int], style_dim: int, fusion: type[nn.Module], patch: int = 1):
        super().__init__()
        self.resolutions = sorted(channels)
        first = channels[4]
        self.input = ConstantInput(first)
        self.first_conv = StyledConv(first, first, style_dim, LQOnly(first))
        self.first_to_rgb = ToRGB(2 * first, style_dim, upsample=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        before = first
        for resolution in self.resolutions[1:]:
            c = channels[resolution]
            self.convs.append(StyledConv(2 * before, c, style_dim, fusion(c), upsample=True))
            self.convs.append(StyledConv(2 * c, c, style_dim, fusion(c)))
            self.to_rgbs.append(ToRGB(2 * c, style_dim, patch=patch if resolution == self.resolutions[-1] else 1))
            before = c

    def forward(
        self,
        w: torch.Tensor,
        features_lq: dict[int, torch.Tensor],
        features_3d: dict[int, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[int, list[torch.Tensor]]]:
        """w (N, style_dim) and features, resolution -> (N, C, r, r), to the image (N, 3, S, S) and the masks.

        Masks are resolution -> the fusion's two masks (N, C, r, r), or an empty list where it has none.
        """
        x, _ = self.first_conv(quick_layout(self.input(w.shape[0])), w, features_lq[4])
        image = self.first_to_rgb(x, w)
        masks = {}
        for i, resolution in enumerate(self.resolutions[1:]):
            lq = features_lq[resolution]
            render = None if features_3d is None else features_3d[resolution]
            x, mask_a = self.convs[2 * i](x, w, lq, render)
            x, mask_b = self.convs[2 * i + 1](x, w, lq, render)
            image = self.to_rgbs[i](x, w, image)
            masks[resolution] = [mask for mask in (mask_a, mask_b) if mask is not None]
        return image, masks
