"""PyTorch: the networks themselves, made ready for inference; on any device, and the reference for the other engines."""

from typing import Any

import numpy as np
import torch

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.fusion_arch import mask_pictures
from sgpn_model.restore.engines import Answers, Engine


class TorchEngine(Engine):
    """Runs a network and a shape prior.

    Args:
        network, prior, precision: see :class:`sgpn_model.restore.restorer.FaceRestorer`.

    Raises:
        OptionError: the device cannot do the precision.
    """

    name = "torch"

    def __init__(
        self,
        network: torch.nn.Module,
        prior: ShapePrior,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ):
        self._place = torch.device(device)
        given: Any = network.eval().to(self._place)
        try:
            ready = hasattr(given, "for_inference")
            self.network: Any = given.for_inference(precision) if ready else given.to(memory_format=torch.channels_last)
        except ValueError as error:
            raise OptionError(str(error)) from error
        self.prior = prior.eval().to(self._place).for_inference("fp32" if precision == "fp32" else "auto")
        self.protocol, self.device = prior.protocol, str(self._place)

    # Read when they are asked for, for the network may be replaced.

    @property
    def size(self) -> int:  # type: ignore[override]
        """Side of the crops, pixels."""
        return self.network.size

    @property
    def precision(self) -> str:  # type: ignore[override]
        """As :class:`Engine` says."""
        return getattr(self.network, "precision", "as given")

    @property
    def network_name(self) -> str:  # type: ignore[override]
        """The class of the network."""
        return type(self.network).__name__

    @property
    def all_fp32(self) -> bool:
        """As :class:`Engine` says; of the regressor too."""
        return all(getattr(each, "precision", "fp32") == "fp32" for each in (self.network, self.prior.regressor))

    @torch.inference_mode()
    def __call__(
        self, crops: np.ndarray, points5: np.ndarray, persons: np.ndarray | None = None, shape_only: bool = False
    ) -> Answers:
        """As :meth:`Engine.__call__`."""
        photos = torch.from_numpy(crops).to(self._place, memory_format=torch.channels_last)
        given = None if persons is None else torch.from_numpy(persons).to(self._place)
        shape = self.prior(photos, torch.from_numpy(points5).to(self._place), given)
        images = picture = None
        if shape_only:
            pass
        elif hasattr(self.network, "with_mask_picture"):
            images, picture = self.network.with_mask_picture(photos, shape.render, shape.coeffs)
        else:
            images, masks = self.network(photos, shape.render, shape.coeffs, return_masks=True)
            pictures = mask_pictures(masks)
            picture = pictures[max(pictures)] if pictures else None
        mesh = shape.mesh
        found = (
            *(images, shape.render, shape.mask, picture, shape.coeffs, shape.landmarks),
            *(mesh.vertices, mesh.colors, self.prior.model.triangles),
        )
        return Answers(*map(_to_numpy, found))  # type: ignore[arg-type]


def _to_numpy(tensor: torch.Tensor | None) -> np.ndarray | None:
    """On the CPU; what was computed in half precision as float32."""
    if tensor is None:
        return None
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
