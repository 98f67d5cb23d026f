"""The authors' released weights: what their tensors are called, and the networks that their shapes describe.

Layout: the state dicts of ``sgpn.pth`` (``netE``, the encoder, and ``netG``, mapping and decoder), of
``d3dfr_*.pth`` and, for the prior, of GPEN (Yang et al. 2021), whose generator SGPN's decoder grew from.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgpn_arch.errors import shown
from sgpn_arch.ops import fir_kernel
from sgpn_arch.state_dicts import check_fit

# Our name -> the released one. A name runs through all rules in turn: first its place, then what a styled
# convolution (at 4x4 the first, without a mask) calls its parts.
SGPN_NAMES = (
    (r"encoder\.stages\.0\.conv\.(.+)", r"netE.ecd0.0.0.\1"),
    (r"encoder\.stages\.0\.bias", r"netE.ecd0.0.1.bias"),
    (r"encoder\.stages\.(\d+)\.conv\.(.+)", r"netE.ecd\1.0.1.\2"),
    (r"encoder\.stages\.(\d+)\.bias", r"netE.ecd\1.0.2.bias"),
    (r"encoder\.to_latent\.(.+)", r"netE.final_linear.0.\1"),
    (r"decoder\.first_conv\.(.+)", r"netG.conv1.\1"),
    (r"decoder\.first_to_rgb\.(.+)", r"netG.to_rgb1.\1"),
    (r"decoder\.(.+)", r"netG.\1"),
    (r"(netG\.(?:conv1|convs\.\d+))\.weight", r"\1.noise.weight"),
    (r"(netG\.(?:conv1|convs\.\d+))\.bias", r"\1.activate.bias"),
    (r"(netG\.convs\.\d+)\.fusion\.mask\.(.+)", r"\1.convs_mask.0.\2"),
)
# The released name -> GPEN's.
GPEN_NAMES = ((r"netG\.mlp\.(.+)", r"generator.style.\1"), (r"netG\.(.+)", r"generator.\1"), (r"netE\.(.+)", r"\1"))
# The numbers of coefficients that every D3DFR ends with: angles, lighting, translation xy, translation z.
POSE_AND_LIGHT = (3, 27, 2, 1)


def released_name(ours: str) -> str:
    """What the authors call one of our SGPN's tensors."""
    layer = re.fullmatch(r"mapping\.layers\.(\d+)\.(.+)", ours)
    if layer:  # mlp.0 is the normalisation
        return f"netG.mlp.{int(layer[1]) + 1}.{layer[2]}"
    return _renamed(ours, SGPN_NAMES)


def gpen_name(ours: str) -> str:
    """What GPEN calls one of our SGPN's tensors, if it has it."""
    return _renamed(released_name(ours), GPEN_NAMES)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, other in rules:
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, other, name)
    return name


# ---------------------------------------------------------------------------------------------------------------------
# SGPN and its regressor


def sgpn_options(released: Mapping[str, Tensor]) -> dict:
    """The constructor's arguments for the SGPN that a released state dict belongs to, read from its tensors.

    Raises:
        ValueError: names a tensor that is missing or has not the expected number of dimensions.
    """
    state = _tensors(released)
    if not any(name.startswith(("netE.", "netG.")) for name in state):
        hint = "; generator.* and ecd* are GPEN's" if any(name.startswith("generator.") for name in state) else ""
        raise ValueError(f"'{next(iter(state))}' is not a tensor of the released SGPN (netE.*, netG.*){hint}")
    style_dim, z_dim = _shape(state, "netG.mlp.1.weight", 2)
    latent_dim = _shape(state, "netE.final_linear.0.weight", 2)[0]
    size = 4 * 2 ** _count(state, r"netG\.to_rgbs\.(\d+)\..+", first=0)
    return {
        "size": size,
        "width": _shape(state, "netE.ecd0.0.0.weight", 4)[0] * size / 32768,
        "max_channels": _shape(state, "netG.input.input", 4)[1],
        "style_dim": style_dim,
        "latent_dim": latent_dim,
        "coeff_dim": z_dim - 2 * latent_dim,
        "mapping_layers": _count(state, r"netG\.mlp\.(\d+)\..+", first=1),
        "fusion": "AFFB",
        "share_encoder": True,
    }


def d3dfr_options(released: Mapping) -> dict:
    """The constructor's arguments for the D3DFR that a released state dict belongs to, read from its tensors.

    Raises:
        ValueError: names a tensor that is missing or does not fit.
    """
    state = _tensors(_regressor(released))
    heads = [_shape(state, f"final_layers.{i}.weight", 4)[0] for i in range(7)]
    if tuple(heads[3:]) != POSE_AND_LIGHT:
        raise ValueError(f"'final_layers' 3 to 6 give {heads[3:]} numbers, expected {list(POSE_AND_LIGHT)}")
    deep = any(re.fullmatch(r"backbone\.layer1\.\d+\.conv3\.weight", name) for name in state)
    return {
        "id_dim": heads[0],
        "exp_dim": heads[1],
        "tex_dim": heads[2],
        "backbone": "resnet50" if deep else "resnet18",
    }


def load_sgpn(network: nn.Module, released: Mapping[str, Tensor]) -> None:
    """Loads a released state dict into the SGPN that :func:`sgpn_options` describes.

    Raises:
        ValueError: names the first released tensor that is missing, unknown, of another shape or not finite, or a blur
            that is not [1, 3, 3, 1].
    """
    state = _tensors(released)
    for name in [name for name in state if name.endswith(".kernel")]:
        _check_kernel(name, state.pop(name))
    _load(network, state, released_name)


def load_d3dfr(network: nn.Module, released: Mapping) -> None:
    """Loads a released state dict, or Deep3DFaceRecon's checkpoint, into the D3DFR that :func:`d3dfr_options` describes.

    Raises:
        ValueError: names the first tensor that is missing, unknown, of another shape or not finite.
    """
    _load(network, _tensors(_regressor(released)), str)


def _regressor(released: Mapping) -> Mapping:
    """Deep3DFaceRecon keeps the network beside its optimisers, under ``net_recon``."""
    return released.get("net_recon", released) if isinstance(released, Mapping) else released


def _load(network: nn.Module, state: dict[str, Tensor], their_name: Callable[[str], str]) -> None:
    names = {ours: their_name(ours) for ours in network.state_dict()}
    expected = {names[ours]: _stored(names[ours], value) for ours, value in network.state_dict().items()}
    check_fit(expected, state, "it")
    network.load_state_dict(
        {ours: state[name].reshape(network.state_dict()[ours].shape) for ours, name in names.items()}
    )


def _stored(name: str, value: Tensor) -> Tensor:
    """Modulated kernels are stored as (1, Cout, Cin, k, k)."""
    modulated = re.fullmatch(r"(netG\.|generator\.)(conv1|convs\.\d+|to_rgb1|to_rgbs\.\d+)\.conv\.weight", name)
    return value[None] if modulated else value


def _check_kernel(name: str, value: Tensor) -> None:
    """Blurs are [1, 3, 3, 1], with gain 4 where they make up for inserted zeros; ours are built in."""
    gain = 1.0 if name.startswith("netE.") else 4.0
    if value.shape != (4, 4) or not torch.allclose(value.float(), fir_kernel(gain=gain), atol=1e-5):
        raise ValueError(f"'{name}' is not the blur [1, 3, 3, 1] with gain {gain:g}, the only one that SGPN has here")


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    if name not in state:
        raise ValueError(f"'{name}' is missing")
    if state[name].ndim != dimensions or not state[name].numel():
        raise ValueError(
            f"'{name}' has shape {tuple(state[name].shape)}, expected {dimensions} dimensions of at least 1"
        )
    return state[name].shape


def _count(state: Mapping[str, Tensor], pattern: str, first: int) -> int:
    numbers = [int(match[1]) for match in (re.fullmatch(pattern, name) for name in state) if match]
    count = max(numbers, default=first - 1) + 1 - first
    if count > len(state):
        raise ValueError(
            f"a tensor is called as if there were {shown(count)} layers, but there are {len(state)} tensors"
        )
    return count


def _tensors(state: Mapping) -> dict[str, Tensor]:
    """The state dict with floating-point tensors as float32, without the prefix of data-parallel training."""
    if not isinstance(state, Mapping) or not state:
        raise ValueError("it is not a state dict (a mapping from names to tensors), or it is empty")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{name!r} is {type(value).__name__}, not a tensor: it is not a flat state dict")
        tensors[name.removeprefix("module.")] = value.float() if value.is_floating_point() else value
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
# A GPEN generator as prior


@dataclass(frozen=True)
class PriorReport:
    """What an initialisation did; names are ours, but those of ``unused``, which are the prior's.

    Attributes:
        taken: initialised. absent: not in the prior. unfit: there in another shape. unused: tensors with no place here.
    """

    taken: list[str]
    absent: list[str]
    unfit: list[str]
    unused: list[str]


def init_from_prior(network: nn.Module, prior: Mapping[str, Tensor]) -> PriorReport:
    """Initialises an SGPN with the tensors of a GPEN generator that have the same place and shape; the others stay.

    New in SGPN, and so never in the prior, are AFFB's masks; the first mapping layer and the encoder's latent have
    another shape.

    Raises:
        ValueError: nothing fits, so it is no GPEN generator; or a tensor is not finite.
    """
    state = {name: value for name, value in _tensors(prior).items() if not name.endswith(".kernel")}
    own = network.state_dict()
    names = {ours: gpen_name(ours) for ours in own}
    absent = [ours for ours, name in names.items() if name not in state]
    fits = {ours: state[name] for ours, name in names.items() if name in state}
    unfit = [ours for ours, value in fits.items() if value.shape != _stored(names[ours], own[ours]).shape]
    taken = {ours: value.reshape(own[ours].shape) for ours, value in fits.items() if ours not in unfit}
    if not taken:
        raise ValueError(
            "no tensor fits: it is no GPEN generator (whose tensors are generator.*, ecd*, final_linear.*)"
        )
    for ours, value in taken.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"'{names[ours]}' holds NaN or infinity")
    network.load_state_dict(taken, strict=False)
    return PriorReport(list(taken), absent, unfit, [name for name in state if name not in names.values()])
