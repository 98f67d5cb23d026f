"""What engines of exported networks have in common: a restoration as four ONNX files, and the mesh drawn between them."""

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.camera import PinholeCamera
from sgpn_arch.face3d.face_mesh import in_grey, without_colour
from sgpn_arch.face3d.raster.rasterizer_numpy import draw
from sgpn_model.restore.engines import Answers, Engine
from sgpn_model.weights.bundle import PARTS, Bundle

CAMERA = PinholeCamera()  # whose picture is the regressor's


class BundleEngine(Engine):
    """Runs a bundle; a subclass says how a file is loaded and run.

    Raises:
        OptionError: the engine is not installed, or cannot do the precision.
        CheckpointError: a file of the bundle is not what was exported.
    """

    def __init__(self, bundle: Bundle, precision: str = "auto", threads: int | None = None, device: str = "auto"):
        bundle.check()
        self.device = self.place(device)
        manifest = bundle.manifest
        self.size, self.protocol, self.uses_render = manifest.size, manifest.protocol, manifest.uses_render
        self.exported = manifest.precision
        self.network_name = bundle.folder.name
        self.precision = self.choose(precision)
        self._load({part: str(bundle.part(part)) for part in PARTS}, threads)

    def place(self, device: str) -> str:
        """The device that a name means; "auto" is the CPU."""
        if device not in ("auto", "cpu"):
            raise OptionError(
                f"device: {self.name} runs on the CPU here, not on {device!r}; use cpu, or the engine torch"
            )
        return "cpu"

    @abstractmethod
    def choose(self, precision: str) -> str:
        """The precision of the generator; the other files are fp32."""

    @abstractmethod
    def _load(self, files: Mapping[str, str], threads: int | None) -> None:
        """Makes every file ready, to be run by so many threads (None: the engine's own choice)."""

    @abstractmethod
    def _run(self, part: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of one file, in its order."""

    def __call__(
        self, crops: np.ndarray, points5: np.ndarray, persons: np.ndarray | None = None, shape_only: bool = False
    ) -> Answers:
        """As :meth:`Engine.__call__`."""
        coefficients, transform = self._run("regressor", {"photo": crops, "points5": points5})
        if persons is not None:
            coefficients = np.where(np.isnan(persons), coefficients, persons)
        points, depth, colors, landmarks, triangles = self._run("mesh", {"coefficients": coefficients})
        if self.protocol == "open":
            colors = np.where(without_colour(crops)[:, None, None], in_grey(colors), colors)
        size = (CAMERA.size, CAMERA.size)
        drawn = np.stack([draw(*mesh, triangles, size) for mesh in zip(points, depth, colors, strict=True)])
        placed = {"drawn": drawn, "landmarks224": landmarks, "transform": transform}
        render, render_mask, landmarks = self._run("render", placed)
        mesh = (CAMERA.unproject(points, depth), colors, triangles)
        if shape_only:
            return Answers(None, render, render_mask, None, coefficients, landmarks, *mesh)
        given = {"photo": crops, "render": render, "coefficients": coefficients}
        if not self.uses_render:
            del given["render"]
        restored, *picture = self._run("generator", given)
        return Answers(restored, render, render_mask, next(iter(picture), None), coefficients, landmarks, *mesh)
