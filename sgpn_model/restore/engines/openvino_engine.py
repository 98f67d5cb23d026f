"""OpenVINO: exported networks on Intel's, AMD's and ARM's CPUs, without PyTorch."""

import threading
from collections.abc import Mapping

import numpy as np

from sgpn_arch.errors import OptionError
from sgpn_arch.files import cache_folder
from sgpn_model.restore.engines.bundle_engine import BundleEngine

HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenvinoEngine(BundleEngine):
    """Runs a bundle in OpenVINO; the generator in bf16 where the processor multiplies in it."""

    name = "openvino"

    def choose(self, precision: str) -> str:
        """ "auto" is bf16 where the processor has it, else fp32."""
        try:
            import openvino
        except ImportError as error:
            raise OptionError(f"engine 'openvino': {error}; run: pip install 'sgpn[openvino]'") from error
        self._core = openvino.Core()
        able = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "auto":
            return "bf16" if able else "fp32"
        if precision not in HINTS or (precision == "bf16" and not able):
            raise OptionError(
                f"precision: OpenVINO does not compute in {precision} on this processor; use auto or fp32"
            )
        return precision

    def _load(self, files: Mapping[str, str], threads: int | None) -> None:
        # What is compiled is kept, for compiling takes seconds.
        common: dict = {"PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": str(cache_folder() / "openvino")}
        if threads:
            common["INFERENCE_NUM_THREADS"] = threads
        self._busy = threading.Lock()
        self._requests = {}
        for part, path in files.items():
            hint = HINTS[self.precision] if part == "generator" else "f32"
            model = self._core.compile_model(path, "CPU", {**common, "INFERENCE_PRECISION_HINT": hint})
            self._requests[part] = model.create_infer_request()

    def _run(self, part: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with self._busy:  # a request serves one caller at a time
            found = self._requests[part].infer(dict(inputs))
            return [np.array(found[output]) for output in self._requests[part].model_outputs]
