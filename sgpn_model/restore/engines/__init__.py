"""Engines: what runs the networks of a restoration. One file per engine; PyTorch is imported only by the one that needs it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass
class Answers:
    """What the networks say about N faces; S is the network's size.

    Attributes:
        restored, render: (N, 3, S, S) float32 RGB, about [-1, 1]; the latter -1 outside the face. The former is None where
            only shapes were asked for.
        render_mask: (N, 1, S, S) float32 in 0..1, 1 on the face.
        mask: (N, 1, r, r) float32 mask picture in 0..1, or None for a fusion without masks.
        coefficients: (N, D) float32. landmarks: (N, 68, 2) float32 OpenCV pixels of the crop.
        vertices, colors: (N, V, 3) float32, and triangles: (F, 3), of the mesh; see :class:`FaceMesh`.
    """

    restored: np.ndarray | None
    render: np.ndarray
    render_mask: np.ndarray
    mask: np.ndarray | None
    coefficients: np.ndarray
    landmarks: np.ndarray
    vertices: np.ndarray
    colors: np.ndarray
    triangles: np.ndarray


class Engine(ABC):
    """The networks of one restorer, made ready; may be called by several threads.

    Attributes:
        name: of the engine. size: side of the crops, pixels. protocol: how they are cut out, see :class:`ShapePrior`.
        device: "cpu", "cuda", ... precision: "fp32", "bf16", "fp16", or "as given" for a network that is not made ready.
        network_name: what a message calls the network.
    """

    name = ""
    size: int
    protocol: str
    device: str
    precision: str
    network_name: str

    @abstractmethod
    def __call__(
        self, crops: np.ndarray, points5: np.ndarray, persons: np.ndarray | None = None, shape_only: bool = False
    ) -> Answers:
        """Restores faces.

        Args:
            crops: (N, 3, S, S) float32 RGB in [-1, 1]. points5: (N, 5, 2) float32 OpenCV pixels of the crops.
            persons: (N, D) float32, coefficients that count in place of the regressor's, NaN where the regressor's do.
            shape_only: leave out the generator: ``restored`` and ``mask`` are None.
        """

    @property
    def all_fp32(self) -> bool:
        """Whether nothing is computed in half precision, so that there is no use in trying again in fp32."""
        return self.precision in ("fp32", "as given")
