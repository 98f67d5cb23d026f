"""D3DFR, the regressor from a face image to the coefficients of the morphable model, its pose and its lighting."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sgpn_arch.backbones import BACKBONES
from sgpn_arch.inference.regressor import InferenceRegressor
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_arch.released_names import d3dfr_options, load_d3dfr

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@ARCH_REGISTRY.register()
class D3DFR(nn.Module):
    """A convolutional backbone with one 1x1 head per group of coefficients (Deep3DFaceRecon's and SGPN's regressor).

    Args:
        id_dim, exp_dim, tex_dim: dimensions of the morphable model's bases.
        backbone: "resnet50" (the paper's), "resnet18" or "mobilenet_v2".
        imagenet_normalisation: subtract ImageNet's mean and divide by its deviation first. The released weights do
            not; a backbone that starts from ImageNet weights should.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        id_dim: int = 80,
        exp_dim: int = 64,
        tex_dim: int = 80,
        backbone: str = "resnet50",
        imagenet_normalisation: bool = False,
    ):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"D3DFR: unknown backbone '{backbone}', choose one of {', '.join(BACKBONES)}")
        self.backbone = BACKBONES[backbone]()
        self.imagenet_normalisation = imagenet_normalisation
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        # identity, expression, texture, angles, lighting, translation xy, translation z
        sizes = (id_dim, exp_dim, tex_dim, 3, 27, 2, 1)
        self.coeff_dim = sum(sizes)
        self.final_layers = nn.ModuleList(nn.Conv2d(self.backbone.width, size, 1) for size in sizes)
        for parameter in self.final_layers.parameters():
            # All coefficients start at zero: the mean face, looking straight ahead.
            nn.init.zeros_(parameter)

    @classmethod
    def from_released(cls, state_dict: Mapping) -> "D3DFR":
        """The network of the authors' ``d3dfr_*.pth`` or Deep3DFaceRecon's ``epoch_20.pth``, in evaluation mode.

        Raises:
            ValueError: names the first tensor that is missing, unknown, of a shape that does not fit, or not finite.
        """
        network = cls(**d3dfr_options(state_dict))
        load_d3dfr(network, state_dict)
        return network.eval()

    def for_inference(self, precision: str = "auto") -> InferenceRegressor:
        """A copy for inference, called alike; see :meth:`sgpn_arch.face3d.shape_prior.ShapePrior.for_inference`."""
        return InferenceRegressor(self, precision)

    def forward(self, image: Tensor) -> Tensor:
        """RGB image (N, 3, 224, 224) in [0, 1] -> coefficients (N, id + exp + tex + 3 + 27 + 3).

        The order is identity, expression, texture, angles (radians), lighting (27), translation (decimetres).
        """
        if self.imagenet_normalisation:
            image = (image - self.mean) / self.std
        features = self.backbone(image)[:, :, None, None]
        return torch.cat([head(features) for head in self.final_layers], dim=1).flatten(1)

    def load_backbone(self, state_dict: dict[str, Tensor]) -> None:
        """Initialises the backbone from a torchvision classifier's state dict; its classifier is left out.

        Raises:
            ValueError: the state dict belongs to another backbone.
        """
        wanted = self.backbone.state_dict()
        taken = {key: value for key, value in state_dict.items() if key in wanted and value.shape == wanted[key].shape}
        missing = [key for key in wanted if key not in taken and not key.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(
                f"D3DFR: the state dict lacks {len(missing)} tensors of the backbone or has them in another shape, first "
                f"'{missing[0]}': it belongs to another architecture"
            )
        self.backbone.load_state_dict(taken, strict=False)
