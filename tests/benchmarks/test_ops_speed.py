"""pytest-benchmark of the operations: ``pytest tests/benchmarks --benchmark-enable`` measures, otherwise each runs once.

In groups of the same work: the operation, and its definition step by step.
"""

import pytest
import torch

from sgpn_model.cli.bench_measure import Settings, wait_for
from sgpn_model.cli.bench_ops import FORWARD, GRADIENTS, cases, timed_call

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAMES = ["fused_leaky_relu", "concat_leaky_relu", "masked_blend", "upfirdn2d, blur", "upsample2d, RGB"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [FORWARD, GRADIENTS])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("path", ["operation", "steps"])
@pytest.mark.parametrize("name", NAMES)
def test_speed(benchmark, name, path, precision, kind, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    # Full size only where time is taken.
    settings = Settings(torch.device(device), torch.get_num_threads(), size=256 if benchmark.enabled else 64)
    case = next(case for case in cases(precision, settings) if case.name == name)
    call = timed_call(case.function if path == "operation" else case.steps, case.inputs, kind)
    benchmark.group = f"{name}, {kind}, {precision}, {device}"

    def finished():
        out = call()
        wait_for(settings.device)
        return out

    assert benchmark(finished).isfinite().all()
