"""Initialising SGPN with a generative prior: one that PriorModel trained, or a GPEN generator as its authors released it."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from sgpn_arch.released import PriorReport, init_from_prior
from sgpn_arch.stylegan2_arch import ConcatStyleGAN2Generator
from sgpn_model.checkpoint import CheckpointError, load_checkpoint, load_weights, read_pickle
from sgpn_model.released import STATE_KEYS

LOGGER = logging.getLogger("sgpn")


def initialise_from_prior(network: nn.Module, path: str) -> PriorReport:
    """Initialises an SGPN with the prior in a file, and logs what was taken.

    Args:
        network: the SGPN. Tensors that have no counterpart of the same shape keep their values: the encoder, the masks of
            AFFB and the first mapping layer have none in our priors.
        path: a checkpoint of :class:`sgpn_model.prior_model.PriorModel`, for a network of any size with the same channels
            at the same scales; or GPEN's (.pth), whose encoder is taken too.

    Raises:
        CheckpointError: the file cannot be read, or nothing in it fits.
    """
    try:
        if Path(path).suffix == ".safetensors":
            report = _take_ours(network, path)
        else:
            report = init_from_prior(network, _state_dict(read_pickle(path)))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    LOGGER.info(
        "%s: %d tensors initialise network_g; not in the prior: %s; there in another shape: %s; without a place here: %s",
        *(path, len(report.taken), *(_listed(part) for part in (report.absent, report.unfit, report.unused))),
    )
    return report


def _take_ours(network: nn.Module, path: str) -> PriorReport:
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


def _mapping_from_the_end(network: nn.Module, prior: ConcatStyleGAN2Generator) -> dict[str, tuple[str, Tensor]]:
    """SGPN's name -> the prior's name and tensor. The last layer is the last, for w is what the decoder is used to.

    Stored weights and biases are divided by the learning-rate multiplier, which may be another here.
    """
    ours, theirs = network.mapping.layers, prior.mapping.layers
    offered = {}
    for index, layer in enumerate(theirs):
        place = index + len(ours) - len(theirs)
        ratio = layer.lr_mul / ours[0].lr_mul
        for key, value in layer.state_dict().items():
            offered[f"mapping.layers.{place}.{key}"] = f"mapping.layers.{index}.{key}", value * ratio
    return offered


def _state_dict(content) -> Mapping[str, Tensor]:
    """The tensors, where the file holds them beside other things."""
    if isinstance(content, Mapping):
        for key in STATE_KEYS:
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}, ...)" if names[3:] else f"{len(names)} ({shown})"
