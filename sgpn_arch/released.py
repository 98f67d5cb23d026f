"""The authors' released weights: what their tensors are called, and the networks that their shapes describe.

Layout: the state dicts of ``sgpn.pth`` (``netE``, the encoder, and ``netG``, mapping and decoder), of
``d3dfr_*.pth`` and, for the prior, of GPEN (Yang et al. 2021), whose generator SGPN's decoder grew from.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgpn_arch.loading import load_strictly
from sgpn_arch.ops import fir_kernel

# Released name -> ours. Styled convolutions carry their own names further inside, see STYLED.
SGPN_NAMES = (
    (r"netE\.ecd0\.0\.0\.weight", r"encoder.stages.0.conv.weight"),
    (r"netE\.ecd0\.0\.1\.bias", r"encoder.stages.0.bias"),
    (r"netE\.ecd([1-9]\d*)\.0\.1\.weight", r"encoder.stages.\1.conv.weight"),
    (r"netE\.ecd([1-9]\d*)\.0\.2\.bias", r"encoder.stages.\1.bias"),
    (r"netE\.final_linear\.0\.(weight|bias)", r"encoder.to_latent.\1"),
    (r"netG\.input\.input", r"decoder.input.input"),
    (r"netG\.conv1\.(.+)", r"decoder.first_conv.\1"),
    (r"netG\.convs\.(\d+)\.(.+)", r"decoder.convs.\1.\2"),
    (r"netG\.to_rgb1\.(.+)", r"decoder.first_to_rgb.\1"),
    (r"netG\.to_rgbs\.(\d+)\.(.+)", r"decoder.to_rgbs.\1.\2"),
)
STYLED = (
    (r"(decoder\.(?:first_conv|convs\.\d+))\.noise\.weight", r"\1.weight"),
    (r"(decoder\.(?:first_conv|convs\.\d+))\.activate\.bias", r"\1.bias"),
    (r"(decoder\.convs\.\d+)\.convs_mask\.0\.(weight|bias)", r"\1.fusion.mask.\2"),
)
GPEN_NAMES = (
    (r"generator\.style\.(.+)", r"netG.mlp.\1"),
    (r"generator\.(.+)", r"netG.\1"),
    (r"ecd(.+)", r"netE.ecd\1"),
    (r"final_linear\.(.+)", r"netE.final_linear.\1"),
)
# The numbers of coefficients that every D3DFR ends with: angles, lighting, translation xy, translation z.
POSE_AND_LIGHT = (3, 27, 2, 1)


# ---------------------------------------------------------------------------------------------------------------------
# SGPN


def read_sgpn(released: Mapping[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """The options of the SGPN that a released state dict belongs to, and its tensors under our names.

    Raises:
        ValueError: names the tensor that is missing, unknown, no tensor, or a blur that is not [1, 3, 3, 1].
    """
    state = {}
    for key, value in _tensors(released).items():
        if key.endswith(".kernel"):
            _check_kernel(key, value)
        else:
            state[_sgpn_name(key)] = _without_batch(key, value)
    return _sgpn_options(state), state


def _sgpn_name(key: str) -> str:
    layer = re.fullmatch(r"netG\.mlp\.([1-9]\d*)\.(weight|bias)", key)
    if layer:  # mlp.0 is the normalisation
        return f"mapping.layers.{int(layer[1]) - 1}.{layer[2]}"
    ours = _renamed(key, SGPN_NAMES)
    if ours is None:
        hint = "; these look like GPEN's weights, which can initialise a network but are none" if _is_gpen(key) else ""
        raise ValueError(f"'{key}' is not a tensor of the released SGPN{hint}")
    return _renamed(ours, STYLED) or ours


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, ours in rules:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, ours, key)
    return None


def _is_gpen(key: str) -> bool:
    return _renamed(key, GPEN_NAMES) is not None


def _without_batch(key: str, value: Tensor) -> Tensor:
    """Modulated kernels are stored as (1, Cout, Cin, k, k)."""
    return value[0] if key.endswith(".conv.weight") and value.ndim == 5 and len(value) == 1 else value


def _check_kernel(key: str, value: Tensor) -> None:
    """Blurs are [1, 3, 3, 1], with gain 4 where they make up for inserted zeros; ours are built in."""
    gain = 1.0 if key.startswith("netE.") else 4.0
    if value.shape != (4, 4) or not torch.allclose(value.float(), fir_kernel(gain=gain), atol=1e-5):
        raise ValueError(f"'{key}' is not the blur [1, 3, 3, 1] with gain {gain:g}, the only one that SGPN has here")


def _sgpn_options(state: Mapping[str, Tensor]) -> dict:
    def shape(key: str, dimensions: int) -> torch.Size:
        if key not in state:
            raise ValueError(f"the tensor that is '{key}' here is missing: it is not a whole released SGPN")
        if state[key].ndim != dimensions:
            raise ValueError(f"'{key}' has shape {tuple(state[key].shape)}, expected {dimensions} dimensions")
        return state[key].shape

    scales = _count(state, r"decoder\.to_rgbs\.(\d+)\.bias")
    size = 4 * 2**scales
    style_dim, z_dim = shape("mapping.layers.0.weight", 2)
    latent_dim = shape("encoder.to_latent.weight", 2)[0]
    return {
        "size": size,
        "width": shape("encoder.stages.0.conv.weight", 4)[0] * size / 32768,
        "max_channels": shape("decoder.input.input", 4)[1],
        "style_dim": style_dim,
        "latent_dim": latent_dim,
        "coeff_dim": z_dim - 2 * latent_dim,
        "mapping_layers": _count(state, r"mapping\.layers\.(\d+)\.weight"),
        "fusion": "AFFB",
        "share_encoder": True,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for match in (re.fullmatch(pattern, key) for key in state) if match]
    return max(found, default=-1) + 1


# ---------------------------------------------------------------------------------------------------------------------
# The regressor


def read_d3dfr(released: Mapping) -> tuple[dict, dict[str, Tensor]]:
    """The options of the D3DFR that a released state dict belongs to, and its tensors; names are the same as ours.

    Args:
        released: the authors' state dict, or Deep3DFaceRecon's checkpoint, which holds one under ``net_recon``.

    Raises:
        ValueError: names the tensor or key that is missing or does not fit.
    """
    state = _tensors(released.get("net_recon", released) if isinstance(released, Mapping) else released)
    heads = []
    for i in range(7):
        head = state.get(f"final_layers.{i}.weight")
        if head is None or head.ndim != 4:
            raise ValueError(f"'final_layers.{i}.weight' is missing or no 1x1 convolution: it is no released regressor")
        heads.append(len(head))
    if tuple(heads[3:]) != POSE_AND_LIGHT:
        raise ValueError(f"'final_layers' 3 to 6 give {heads[3:]} numbers, expected {list(POSE_AND_LIGHT)}")
    backbone = "resnet50" if "backbone.layer1.0.conv3.weight" in state else "resnet18"
    return {"id_dim": heads[0], "exp_dim": heads[1], "tex_dim": heads[2], "backbone": backbone}, state


# ---------------------------------------------------------------------------------------------------------------------
# A GPEN generator as prior


@dataclass(frozen=True)
class PriorReport:
    """What an initialisation did; all are names of our tensors, but ``unused``, which are the prior's.

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
    own = network.state_dict()
    fitting, unfit, unused = {}, [], []
    for key, value in _tensors(prior).items():
        if key.endswith(".kernel"):
            continue
        name = _gpen_name(key)
        value = _without_batch(key, value)
        if name not in own:
            unused.append(key)
        elif value.shape != own[name].shape:
            unfit.append(name)
        else:
            fitting[name] = value
    if not fitting:
        raise ValueError(
            "no tensor fits: it is no GPEN generator (whose tensors are generator.*, ecd*, final_linear.*)"
        )
    load_strictly(network, {**own, **fitting})
    absent = [name for name in own if name not in fitting and name not in unfit]
    return PriorReport(sorted(fitting), absent, unfit, unused)


def _gpen_name(key: str) -> str | None:
    released = _renamed(key, GPEN_NAMES)
    try:
        return _sgpn_name(released) if released else None
    except ValueError:
        return None


def _tensors(state: Mapping) -> dict[str, Tensor]:
    """The state dict with floating-point tensors as float32, without the prefix of data-parallel training."""
    if not isinstance(state, Mapping) or not state:
        raise ValueError("it is not a state dict (a mapping from names to tensors), or it is empty")
    tensors = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{key!r} is {type(value).__name__}, not a tensor: it is not a flat state dict")
        tensors[key.removeprefix("module.")] = value.float() if value.is_floating_point() else value
    return tensors
