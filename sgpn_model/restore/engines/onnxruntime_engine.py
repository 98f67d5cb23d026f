"""onnxruntime: exported networks on any CPU, without PyTorch; it is small, and the detector needs it anyway."""

from collections.abc import Mapping

import numpy as np

from sgpn_arch.errors import OptionError
from sgpn_data.detection import silent_onnxruntime
from sgpn_model.restore.engines.bundle_engine import BundleEngine

# Device -> the provider that runs it, in a build of onnxruntime that has it. None but the CPU's was tried.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}


class OnnxruntimeEngine(BundleEngine):
    """Runs a bundle in onnxruntime, in the precision that it was exported in."""

    name = "onnxruntime"

    def place(self, device: str) -> str:
        """ "auto" is the CPU."""
        place = "cpu" if device == "auto" else device
        if PROVIDERS.get(place) not in silent_onnxruntime().get_available_providers():
            raise OptionError(
                f"device: this onnxruntime has nothing for {device!r} (devices: {', '.join(PROVIDERS)}); use cpu, or install "
                "the build of onnxruntime for that device"
            )
        return place

    def choose(self, precision: str) -> str:
        """What the bundle was exported in."""
        if precision not in ("auto", self.exported):
            raise OptionError(
                f"precision: onnxruntime computes in what the bundle was exported in, {self.exported}, not in {precision}"
            )
        return self.exported

    def _load(self, files: Mapping[str, str], threads: int | None) -> None:
        onnxruntime = silent_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # Threads that wait for work by spinning take the processor from those that have some.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = list(dict.fromkeys([PROVIDERS[self.device], PROVIDERS["cpu"]]))
        self._sessions = {
            part: onnxruntime.InferenceSession(path, options, providers=providers) for part, path in files.items()
        }

    def _run(self, part: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._sessions[part].run(None, dict(inputs))
