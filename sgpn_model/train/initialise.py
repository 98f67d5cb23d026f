"""Initialising SGPN: with a generative prior (PriorModel's, or GPEN's as released), as the identity, or from a smaller SGPN."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgpn_arch.colour import LUMA
from sgpn_arch.layers import ModulatedConv2d
from sgpn_arch.released_names import PriorReport, init_from_prior
from sgpn_arch.sgpn_arch import SGPN
from sgpn_arch.stylegan2_arch import ConcatStyleGAN2Generator
from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint, load_weights, read_state_dict
from sgpn_model.weights.pretrained import find_weights

LOGGER = logging.getLogger("sgpn")


def initialise_from_prior(network: SGPN, path: str | Path) -> PriorReport:
    """Initialises an SGPN with the prior in a file, and logs what was taken.

    Args:
        network: the SGPN. Tensors that have no counterpart of the same shape keep their values: the encoder, the masks of
            AFFB and the first mapping layer have none in our priors.
        path: a checkpoint of :class:`sgpn_model.train.prior_model.PriorModel`, for a network of any size with the same channels
            at the same scales; or GPEN's (.pth), whose encoder is taken too.

    Raises:
        CheckpointError: the file cannot be read, or nothing in it fits.
    """
    path = find_weights(path)
    try:
        ours = path.suffix == ".safetensors"
        report = _take_ours(network, path) if ours else init_from_prior(network, read_state_dict(path))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    LOGGER.info(
        "%s: %d tensors initialise network_g; not in the prior: %s; there in another shape: %s; without a place here: %s",
        *(path, len(report.taken), *(_listed(part) for part in (report.absent, report.unfit, report.unused))),
    )
    return report


def _take_ours(network: SGPN, path: str | Path) -> PriorReport:
    prior = load_checkpoint(path).network("network_g")
    if not isinstance(prior, ConcatStyleGAN2Generator):
        raise CheckpointError(
            f"{path}: its network_g is {type(prior).__name__}, no prior; a whole SGPN goes into path.pretrain_network_g"
        )
    offered = {f"decoder.{key}": (f"decoder.{key}", value) for key, value in prior.decoder.state_dict().items()}
    offered.update(_mapping_from_the_end(network, prior))
    own = network.state_dict()
    taken = {key: value for key, (_, value) in offered.items() if key in own and own[key].shape == value.shape}
    if not any(re.fullmatch(r"decoder\.convs\.\d+\.conv\.weight", key) for key in taken):
        raise CheckpointError(f"{path}: no convolution of it fits network_g; are width and max_channels the same?")
    load_weights(network, {**own, **taken}, path)
    unfit = [key for key in offered if key in own and key not in taken]
    absent = [key for key in own if key not in offered]
    return PriorReport(list(taken), absent, unfit, [theirs for key, (theirs, _) in offered.items() if key not in own])


def _mapping_from_the_end(network: SGPN, prior: ConcatStyleGAN2Generator) -> dict[str, tuple[str, Tensor]]:
    """SGPN's name -> the prior's name and tensor. The last layer is the last, for w is what the decoder is used to.

    Stored weights and biases are divided by the learning-rate multiplier, which may be another here.
    """
    ours: list[Any] = list(network.mapping.layers)
    theirs: list[Any] = list(prior.mapping.layers)
    offered = {}
    for index, layer in enumerate(theirs):
        place = index + len(ours) - len(theirs)
        ratio = layer.lr_mul / ours[0].lr_mul
        for key, value in layer.state_dict().items():
            offered[f"mapping.layers.{place}.{key}"] = f"mapping.layers.{index}.{key}", value * ratio
    return offered


# -- choices of ours, for short training --------------------------------------------------------------------------------

# Through two fused leaky ReLUs (slope 0.2, gain sqrt 2), x and -x come out as values whose difference is 2.08 x.
AFTER_ONE, AFTER_TWO = 1.2 * 2**0.5, 2.08
# After the encoder's blur, these taps make about the mean of two pixels, as which the small network knew its photo.
UNBLUR = torch.tensor([-0.5, 2.0, -0.5])
# How light varies within a square of 2 x 2 pixels: across, down and both.
WITHIN = torch.tensor([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).float()


@torch.no_grad()
def start_from_input(network: SGPN) -> None:
    """Changes a fresh SGPN so that its output is its photo, which it then learns to correct (a choice of ours).

    Six channels of the encoder's first features hold RGB and its negative, the finest fusion passes them on, and the
    finest ToRGB makes RGB of their differences. All other weights of all ToRGBs are 0. The scalars that weigh the fused
    features, 0 in StyledConv for the sake of a pretrained prior, are 1.

    Raises:
        ValueError: the network is no SGPN, has a ``patch``, or its fusion cannot pass the photo.
    """
    if not isinstance(network, SGPN):
        raise ValueError(f"only an SGPN can begin as the identity, and network_g is a {type(network).__name__}")
    if network.patch > 1:
        raise ValueError(
            "only a network with network_g.patch: 1 can begin as the identity; one with more grows from it"
        )
    decoder: Any = network.decoder
    fusion = decoder.convs[-1].fusion
    if fusion.adds_render and network.render_encoder is None:
        raise ValueError(
            f"{type(fusion).__name__} adds the rendering to the photo that is to pass; give the rendering an encoder of its "
            "own, which begins without it (network_g.share_encoder: false)"
        )
    fusion.pass_photo(6)
    for conv in [decoder.first_conv, *decoder.convs]:
        conv.weight.fill_(1)
    for to_rgb in [decoder.first_to_rgb, *decoder.to_rgbs]:
        to_rgb.conv.weight.zero_()
    for encoder in filter(None, (network.encoder, network.render_encoder)):
        first: Any = encoder.stages[0]
        empty = fusion.adds_render and encoder is network.render_encoder
        first.conv.weight[:6] = 0 if empty else _plus_minus() / first.conv.scale
        first.bias[:6] = 0
    to_rgb = decoder.to_rgbs[-1].conv
    shown = _photo_channels(network, -1)
    to_rgb.modulation.weight[shown] = 0
    to_rgb.weight[:, shown] += _photo_to_rgb(to_rgb)


def _photo_channels(network: SGPN, scale: int) -> slice:
    """Where the photo's six channels are in what the ToRGB of a scale (-1: the finest) gets: behind the hidden half."""
    fusion: Any = network.decoder.convs[2 * scale + 1].fusion
    start = fusion.channels + fusion.photo_channel
    return slice(start, start + 6)


def _plus_minus() -> Tensor:
    eye = torch.eye(3)
    return torch.cat([eye, -eye])[:, :, None, None]


def _photo_to_rgb(conv: ModulatedConv2d) -> Tensor:
    return _plus_minus().transpose(0, 1) / (AFTER_TWO * conv.scale)


def grow(network: SGPN, path: str | Path) -> None:
    """Initialises a fresh SGPN with one of half its size, so that it does at once what the small one did.

    The result is the photo plus the small network's correction, enlarged; the small network's photo is the halved one.
    Where ``patch`` is twice the small network's, the scales are the same, each place of the finest one makes four pixels for
    one, and ``min_channels`` may be greater: what the further channels say counts for nothing at first. Otherwise the finest
    scale of the decoder is new; the small network must then have begun as :func:`start_from_input` makes it, and have the
    same channels at the scales that both have. (A choice of ours; Karras et al. 2018 grow their networks too, by fading in.)

    Raises:
        CheckpointError: the file holds no such network.
    """
    path = find_weights(path)
    small = load_checkpoint(path).network("network_g")
    if not isinstance(small, SGPN) or 2 * small.size != network.size:
        found = f"a {type(small).__name__} of {getattr(small, 'size', '?')} px"
        raise CheckpointError(f"{path}: path.grow_from needs an SGPN of {network.size // 2} px, found {found}")
    if network.patch != small.patch:
        _grow_patch(network, small, path)
        return
    decoder: Any = network.decoder
    if decoder.convs[-1].fusion.adds_render:
        raise CheckpointError(f"{path}: cannot grow with a fusion that adds the rendering to the photo")
    start_from_input(network)
    ours, theirs = network.state_dict(), small.state_dict()
    renamed = {_grown_name(key): value for key, value in theirs.items() if ".stages.0." not in key}
    unfit = [key for key, value in renamed.items() if key not in ours or ours[key].shape != value.shape]
    if unfit:
        raise CheckpointError(f"{path}: does not fit network_g at {_listed(unfit)}; only its size may differ")
    load_weights(network, {**ours, **renamed}, path)
    _take_first_stage(network, small)
    to_rgb: Any = network.decoder.to_rgbs[-2].conv
    with torch.no_grad():  # the photo comes in at the finest scale now
        to_rgb.weight[:, _photo_channels(network, -2)] -= _photo_to_rgb(to_rgb)


@torch.no_grad()
def _grow_patch(network: SGPN, small: SGPN, path: Path) -> None:
    """The small network on the means of four pixels, each of which gets what it adds to their mean."""
    if (network.patch, small.patch) != (2, 1):
        raise CheckpointError(f"{path}: is of patch {small.patch}; only from 1 to 2 can network_g.patch grow")
    ours, grown = network.state_dict(), dict[str, Any]()
    before, after = (len(each.state_dict()["encoder.stages.0.bias"]) for each in (small, network))
    for key, value in small.state_dict().items():
        if key.endswith("encoder.stages.0.conv.weight"):
            value = (
                value.repeat_interleave(4, dim=1) / 2
            )  # a quarter each; equalised learning halves what four as many give
        elif key in (f"decoder.to_rgbs.{len(small.decoder.to_rgbs) - 1}.{part}" for part in ("conv.weight", "bias")):
            value = value.repeat_interleave(4, dim=value.shape.index(3))
        wanted = ours.get(key, value.new_empty(0))
        grown[key] = value if value.shape == wanted.shape else _widened(value, wanted.clone(), before, after)
        if grown[key] is None:
            raise CheckpointError(
                f"{path}: does not fit network_g at {key}; only its size and its finest channels may differ"
            )
    load_weights(network, {**ours, **grown}, path)
    for encoder in filter(None, (network.encoder, network.render_encoder)):
        _show_within(encoder.stages[0], before)


def _show_within(first: Any, start: int) -> None:
    """Six channels from ``start`` on, if there are so many, show how light varies within a square, and the negative of that.

    Random channels mix it with all else: with these, a network had not learnt to remove a photo's finest noise in 1,100 steps.
    """
    if start + 6 <= len(first.bias):
        seen = (torch.tensor(LUMA)[:, None] * WITHIN[:, None]).flatten(1)[:, :, None, None] / first.conv.scale
        first.conv.weight[start : start + 6] = torch.cat([seen, -seen])
        first.bias[start : start + 6] = 0


def _widened(value: Tensor, fresh: Tensor, before: int, after: int) -> Tensor | None:
    """``fresh``, with ``value`` where the old channels are and 0 where old ones would hear new ones; None: it does not fit.

    A side is some groups (hidden, photo, rendering) of ``before`` channels, and of ``after`` channels in ``fresh``.
    """
    if value.ndim != fresh.ndim:
        return None
    places = []
    for old, new in zip(value.shape, fresh.shape, strict=True):
        groups = old // before if old != new else 1
        if old != new and (old, new) != (groups * before, groups * after):
            return None
        own = before if old != new else old
        places.append((torch.arange(groups)[:, None] * (new // groups) + torch.arange(own)).flatten())
    if value.ndim == 4 and value.shape[1] != fresh.shape[1]:
        fresh[places[0]] = 0
        value = value * (fresh.shape[1] / value.shape[1]) ** 0.5  # equalised learning
    fresh[torch.meshgrid(*places, indexing="ij")] = value
    return fresh


def _grown_name(key: str) -> str:
    """An encoder's stages are counted from the finest one, a decoder's from the coarsest."""
    return re.sub(r"(encoder\.stages\.)(\d+)", lambda found: f"{found[1]}{int(found[2]) + 1}", key)


@torch.no_grad()
def _take_first_stage(network: SGPN, small: SGPN) -> None:
    """The small network's 1x1 convolution of RGB becomes a 3x3 one on RGB's six channels, after the blur."""
    pairs: list[Any] = [(network.encoder, small.encoder), (network.render_encoder, small.render_encoder)]
    for encoder, own in (pair for pair in pairs if pair[0] is not None):
        before, after = own.stages[0], encoder.stages[1]
        colours = (before.conv.weight * before.conv.scale)[:, :, 0, 0] / AFTER_ONE
        after.conv.weight.zero_()
        both = torch.cat([colours, -colours], dim=1)[:, :, None, None]
        after.conv.weight[:, :6] = both * torch.outer(UNBLUR, UNBLUR) / after.conv.scale
        after.bias.copy_(before.bias)


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}, ...)" if names[3:] else f"{len(names)} ({shown})"
