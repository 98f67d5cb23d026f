"""Tests of torch.ops.sgpn.*: values, first and second gradients, layouts, and what PyTorch asks of an operator.

Each test runs on the CPU, where the operators compute with PyTorch's operations, and on the GPU with the kernels. The last
test builds the kernels as plain C++ behind the torch binding and runs this file again with those.
"""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import sgpn_arch.ops
from sgpn_arch.fusion_arch import AFFB
from sgpn_arch.layers import StyledConv
from sgpn_arch.ops import (
    concat_leaky_relu,
    fir_kernel,
    fused_leaky_relu,
    library,
    masked_blend,
    plain_operations,
    upfirdn2d,
)
from sgpn_arch.sgpn_arch import SGPN

OPS = torch.ops.sgpn
BUILT = os.environ.get("SGPN_TEST_KERNELS")
if BUILT:
    torch.ops.load_library(BUILT)

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 3e-2, torch.float32: 2e-6, torch.float64: 1e-12}


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not library.load_kernels():
        pytest.fail("there is a GPU, but the kernels could not be built: see the warning")
    return request.param


def _random(*shape, device, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def _layouts(x):
    """The same values in several layouts."""
    wider = torch.cat([x, x + 1], dim=1)
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "channels of more": wider[:, : x.shape[1]],
        "channels of more, last": wider.contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
        "every second column": x.repeat_interleave(2, dim=3)[..., ::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "not aligned": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "one row for all": x[:, :, :1].expand(x.shape),
    }


LAYOUTS = list(_layouts(torch.zeros(1, 2, 2, 2)))


def _cases(device, dtype, layout="contiguous", shape=(2, 16, 6, 8)):
    """name -> (operator, plain function, arguments): activations first, then those in the wide type."""
    a, b, c = (_layouts(_random(*shape, device=device, dtype=dtype, seed=seed))[layout] for seed in range(3))
    wide = library.wide(dtype)
    bias = _random(2 * shape[1], device=device, dtype=wide, seed=3)
    if dtype.itemsize == 2:
        bias = 5 * bias.sign()  # far from where rounding decides the sign of the sum, and with it the gradient
    weight = _random(1, device=device, dtype=wide, seed=4)
    cases = {
        "fused_leaky_relu": (partial(_activate, 0.2, 1.4), partial(_activate_plainly, 0.2, 1.4), (a, bias[: shape[1]])),
        "concat_leaky_relu": (partial(_concat, 0.2, 1.4), partial(_concat_plainly, 0.2, 1.4), (a, b, weight, bias)),
        "masked_blend": (OPS.masked_blend, masked_blend, (a, b, c)),
    }
    kernel = _random(4, 4, device=device, dtype=wide, seed=5)
    for up, down, pad in [(1, 1, (1, 1)), (1, 1, (2, 2)), (2, 1, (2, 1)), (1, 2, (1, 1)), (3, 2, (-1, 4))]:
        cases[f"upfirdn2d, {up}, {down}, {pad}"] = (
            partial(_filter, kernel, up, down, pad),
            partial(_filter_plainly, kernel, up, down, pad),
            (a,),
        )
    return cases


def _activate(slope, gain, x, bias):
    return OPS.fused_leaky_relu(x, bias, slope, gain)


def _activate_plainly(slope, gain, x, bias):
    return fused_leaky_relu(x, bias, slope, gain)


def _concat(slope, gain, *arguments):
    return OPS.concat_leaky_relu(*arguments, slope, gain)


def _concat_plainly(slope, gain, *arguments):
    return concat_leaky_relu(*arguments, slope, gain)


def _filter(kernel, up, down, pad, x):
    height, width = ((side * up + sum(pad) - 4) // down + 1 for side in x.shape[2:])
    return OPS.upfirdn2d(x, kernel.to(library.wide(x.dtype)), up, down, pad[0], height, width, False)


def _filter_plainly(kernel, up, down, pad, x):
    return upfirdn2d(x, kernel, up, down, pad)


CASES = list(_cases("cpu", torch.float32))


def _listed(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def _exactly(plain, arguments, grads=None):
    """The plain function in float64: its results and, for gradients of those, the arguments' gradients."""
    arguments = [x.detach().double().requires_grad_() for x in arguments]
    with plain_operations():
        results = _listed(plain(*arguments))
        if grads is None:
            return results
        return torch.autograd.grad(results, arguments, [g.double() for g in grads])


@pytest.mark.skipif(BUILT is None, reason="no library was given in SGPN_TEST_KERNELS")
def test_operators_of_the_cpu_are_those_of_the_given_library():
    names = [*_samples("cpu", torch.float32, "contiguous")]
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"sgpn::{name}", "CPU") for name in names)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_plain_operations(device, dtype, layout, case):
    operator, plain, arguments = _cases(device, dtype, layout)[case]
    arguments = [x.detach().requires_grad_() for x in arguments]
    results = _listed(operator(*arguments))
    grads = [_random(*x.shape, device=device, dtype=dtype, seed=9 + i) for i, x in enumerate(results)]
    for actual, expected in zip(results, _exactly(plain, arguments), strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, atol=2 * TOLERANCE[dtype], rtol=2 * TOLERANCE[dtype])
    found = torch.autograd.grad(results, arguments, grads)
    for x, actual, expected in zip(arguments, found, _exactly(plain, arguments, grads), strict=True):
        assert actual.dtype == x.dtype
        many = 1 if x.ndim == 4 else 30 * (dtype != torch.float64) + 1  # sums of many roundings
        tolerance = TOLERANCE[dtype] * 3 * many
        torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_slopes_of_values_and_second_gradients_those_of_gradients(device, case):
    for layout in ("contiguous", "channels_last"):
        operator, _, arguments = _cases(device, torch.float64, layout, shape=(1, 2, 4, 4))[case]
        arguments = [x.requires_grad_() for x in arguments]
        assert torch.autograd.gradcheck(operator, arguments)
        assert torch.autograd.gradgradcheck(operator, arguments)


def test_gradient_of_a_mask_that_is_used_alone(device):
    arguments = [_random(1, 2, 3, 3, device=device, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *x: OPS.masked_blend(*x)[1], arguments)
    assert torch.autograd.gradgradcheck(lambda *x: OPS.masked_blend(*x)[0], arguments)


@pytest.mark.parametrize("case", CASES)
def test_memory_format_of_results(device, case):
    for layout, wanted in [("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)]:
        operator, _, arguments = _cases(device, torch.float32, layout)[case]
        assert all(x.is_contiguous(memory_format=wanted) for x in _listed(operator(*arguments)))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
@pytest.mark.parametrize("case", CASES[:3] + CASES[4:6])
def test_empty_tensors(device, shape, case):
    operator, _, arguments = _cases(device, torch.float32, shape=shape)[case]
    if case.startswith("upfirdn2d") and shape[2] == 0:
        pytest.skip("an empty picture has nothing to filter; PyTorch's convolution refuses it")
    arguments = [x.requires_grad_() for x in arguments]
    result = _listed(operator(*arguments))[0]
    grads = torch.autograd.grad(result.sum(), arguments)
    assert result.numel() == 0
    assert all(torch.equal(x, torch.zeros_like(x)) for x in grads)


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 5), (2, 8, 3, 2, 2)])
def test_activations_of_other_dimensions(device, shape):
    x, bias = _random(*shape, device=device).requires_grad_(), _random(8, device=device, seed=1).requires_grad_()
    operator = partial(_activate, 0.2, 1.4)
    torch.testing.assert_close(operator(x, bias), _exactly(partial(_activate_plainly, 0.2, 1.4), (x, bias))[0])
    assert torch.autograd.gradcheck(operator, (x, bias))


def _samples(device, dtype, layout):
    """name -> arguments of every operator, gradients' too."""
    a, b, c, d = (_layouts(_random(2, 8, 6, 8, device=device, dtype=dtype, seed=i))[layout] for i in range(4))
    wide = library.wide(dtype)
    bias, weight = _random(16, device=device, dtype=wide), _random(1, device=device, dtype=wide)
    kernel, both = _random(4, 4, device=device, dtype=wide), torch.cat([a, b], dim=1)
    samples = {
        "fused_leaky_relu": (a, bias[:8], 0.2, 1.4),
        "fused_leaky_relu_backward": (a, b, 0.2, 1.4),
        "concat_leaky_relu": (a, b, weight, bias, 0.2, 1.4),
        "concat_leaky_relu_backward": (both, both + 1, c, weight, 0.2, 1.4),
        "masked_blend": (a, b, c),
        "masked_blend_backward": (a, None, b, c, d.sigmoid()),
        "upfirdn2d": (a, kernel, 2, 1, 2, 12, 16, False),
    }
    differentiable = {"kernel": kernel, "out": samples["fused_leaky_relu_backward"][1]}
    constants = {id(x) for x in differentiable.values()} | {id(samples["concat_leaky_relu_backward"][1])}
    return {
        name: tuple(
            x.detach().requires_grad_() if torch.is_tensor(x) and id(x) not in constants else x for x in arguments
        )
        for name, arguments in samples.items()
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", list(_samples("cpu", torch.float32, "contiguous")))
def test_operator_is_registered_as_pytorch_asks(device, name, layout):
    arguments = _samples(device, torch.float32, layout)[name]
    torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("case", CASES[:4])
def test_compiled_operator_computes_the_same(device, case):
    operator, _, arguments = _cases(device, torch.float32)[case]
    arguments = [x.requires_grad_() for x in arguments]
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    expected, actual = operator(*arguments), compiled(*arguments)
    for one, other in zip(_listed(expected), _listed(actual), strict=True):
        torch.testing.assert_close(one, other)
    grads = [torch.autograd.grad(_listed(x)[0].square().sum(), arguments) for x in (expected, actual)]
    torch.testing.assert_close(*grads)


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU: what the layers call


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = SGPN(size=64, width=0.25, style_dim=32, latent_dim=16, coeff_dim=8).cuda()
    for module in network.modules():
        if isinstance(module, StyledConv):
            torch.nn.init.normal_(module.weight)
    return network


def _faces(batch=2):
    return _random(batch, 3, 64, 64, device="cuda", dtype=torch.float32), torch.randn(batch, 8, device="cuda")


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_network_computes_and_learns_as_with_plain_operations(network, dtype, channels_last):
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    face, coeffs = _faces()

    def run():
        with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
            image = network(face, face.flip(3), coeffs)
        return image, torch.autograd.grad(image.float().square().mean(), list(network.parameters()))

    image, grads = run()
    with plain_operations():
        expected, expected_grads = run()
    tolerance = 2e-4 if dtype is None else 0.1
    torch.testing.assert_close(image, expected, atol=tolerance, rtol=tolerance)
    ours, plain = (torch.cat([g.flatten() for g in gradients]) for gradients in (grads, expected_grads))
    assert (ours - plain).norm() <= (1e-3 if dtype is None else 0.2) * plain.norm()


@pytest.mark.gpu
@NEEDS_GPU
def test_network_in_a_cuda_graph_and_compiled(network):
    face, coeffs = _faces()
    with torch.inference_mode():
        expected = network(face, face, coeffs)
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.stream(side):
            network(face, face, coeffs)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = network(face, face, coeffs)
        face.mul_(-1)
        graph.replay()
        torch.testing.assert_close(captured, network(face, face, coeffs), atol=1e-4, rtol=1e-4)
        face.mul_(-1)
        compiled = torch.compile(network)(face, face, coeffs)
    torch.testing.assert_close(compiled, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@NEEDS_GPU
def test_fusion_uses_its_kernel():
    block, features = AFFB(8).cuda(), torch.randn(1, 8, 4, 4, device="cuda")
    with torch.profiler.profile() as profile:
        block(features, features, features)
    assert "sgpn::masked_blend" in {event.key for event in profile.key_averages()}


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("channels_last", [False, True])
def test_tensors_of_more_than_two_to_the_31_elements(channels_last):
    free, _ = torch.cuda.mem_get_info()
    if free < 30 * 2**30:
        pytest.skip(f"needs 30 GiB of GPU memory, {free / 2**30:.0f} GiB are free")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(5, 64, 2600, 2600, dtype=torch.float16, device="cuda", memory_format=layout)
    assert x.numel() > 2**31
    x[:] = torch.linspace(-1, 1, 2600, device="cuda")
    bias, kernel = torch.full((64,), 0.25, device="cuda"), fir_kernel().cuda()
    for function in (lambda x: fused_leaky_relu(x, bias), lambda x: upfirdn2d(x, kernel, pad=(2, 1))):
        with torch.no_grad():
            torch.testing.assert_close(function(x)[-1:], function(x[-1:].clone()), atol=0, rtol=0)
    x.requires_grad_()
    grad = fused_leaky_relu(x, bias)
    (grad,) = torch.autograd.grad(grad, x, grad)
    positive = x[-1].detach() + 0.25 > 0
    assert torch.equal(grad[-1] > 0, positive)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_each_tensor_is_worked_on_by_its_own_gpu():
    x, bias = torch.randn(2, 8, 4, 4, device="cuda:1"), torch.randn(8, device="cuda:1")
    actual = fused_leaky_relu(x, bias)
    torch.testing.assert_close(actual.cpu(), fused_leaky_relu(x.cpu(), bias.cpu()))


# ---------------------------------------------------------------------------------------------------------------------
# The kernels behind the binding, without a GPU


@pytest.mark.slow
@pytest.mark.skipif(BUILT is not None, reason="this is that run")
def test_binding_and_kernels_as_plain_cpp(tmp_path):
    if shutil.which("g++") is None or shutil.which("ninja") is None:
        pytest.skip("needs a C++ compiler (g++) and ninja")
    here, csrc = Path(__file__), Path(sgpn_arch.ops.__file__).parent / "csrc"
    kernels = tmp_path / "kernels_as_cpp.cpp"  # the ending tells the builder which compiler to take
    kernels.write_text(f'#include "{csrc / "kernels.cu"}"\n')
    limits = ["-DSGPN_CHUNK=64", "-DSGPN_GRAD_SLOTS=256", "-DSGPN_MAX_BLOCKS=3"]
    flags = ["-O1", "-w", "-DSGPN_ON_CPU", *limits, "-include", str(here.parent / "cuda_on_cpu.h"), f"-I{csrc}"]
    build = (
        "from torch.utils.cpp_extension import load\n"
        f"load('sgpn_on_cpu', {[str(kernels), str(csrc / 'binding.cpp')]!r}, extra_cflags={flags!r},"
        f" build_directory={str(tmp_path)!r}, is_python_module=False)"
    )
    subprocess.run([sys.executable, "-c", build], check=True, capture_output=True, text=True, env=_without_gpu())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(here),
        "-k",
        "cpu and not plain_cpp",
    ]
    environment = {**_without_gpu(), "SGPN_TEST_KERNELS": str(tmp_path / "sgpn_on_cpu.so")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=here.parents[2], env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def _without_gpu():
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
