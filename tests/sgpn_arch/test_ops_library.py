"""Tests of where the operators' kernels come from: built once for all processes, and done without where they cannot be."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sgpn_arch.fusion_arch import AFFB
from sgpn_arch.layers import EqualLinear, StyledConv
from sgpn_arch.ops import concat_leaky_relu, fused_leaky_relu, library, masked_blend, upfirdn2d


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Makes the loader believe in a GPU and look for nothing outside ``tmp_path``."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.delenv("SGPN_KERNELS", raising=False)
    monkeypatch.setenv("SGPN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    (tmp_path / "csrc").mkdir()
    nvcc = tmp_path / "nvcc"
    nvcc.touch(mode=0o755)
    monkeypatch.setenv("PYTORCH_NVCC", str(nvcc))
    (tmp_path / "csrc" / "kernels.cu").write_text("first")
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    library.load_kernels.cache_clear()
    yield loaded
    library.load_kernels.cache_clear()


@pytest.fixture
def builds(monkeypatch):
    """Replaces the compiler by one that writes an empty file; returns the calls."""
    calls = []

    def load(name, sources, build_directory, **_):
        calls.append(sources)
        assert not (Path(build_directory) / "lock").exists()
        (Path(build_directory) / f"{name}.so").touch()

    monkeypatch.setattr("torch.utils.cpp_extension.load", load)
    return calls


def test_without_a_gpu_nothing_is_loaded_or_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    library.load_kernels.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not library.load_kernels()
    library.load_kernels.cache_clear()


def test_kernels_are_built_once_and_found_again(gpu, builds):
    assert library.load_kernels()
    library.load_kernels.cache_clear()
    assert library.load_kernels()
    assert len(builds) == 1
    assert [Path(path).name for path in gpu] == ["sgpn_kernels.so"] * 2


def test_other_sources_or_gpus_are_another_library(gpu, builds, tmp_path, monkeypatch):
    first = library.build_kernels()
    (tmp_path / "csrc" / "kernels.cu").write_text("second")
    second = library.build_kernels()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert len({first, second, library.build_kernels()}) == len(builds) == 3


def test_lock_of_a_process_that_was_killed_is_removed(gpu, builds):
    folder = library.build_kernels().parent
    (folder / "sgpn_kernels.so").unlink()
    (folder / "lock").touch()
    library.build_kernels()
    assert len(builds) == 2


def test_kernels_built_at_install_come_first(gpu, builds, tmp_path):
    (tmp_path / "_kernels.so").touch()
    assert library.load_kernels()
    assert gpu == [str(tmp_path / "_kernels.so")]
    assert not builds


def test_kernels_built_at_install_for_another_pytorch_are_built_anew(gpu, builds, tmp_path, monkeypatch):
    def load(path):
        if Path(path).name == "_kernels.so":
            raise OSError("undefined symbol: _ZN2at")
        gpu.append(path)

    monkeypatch.setattr(torch.ops, "load_library", load)
    (tmp_path / "_kernels.so").touch()
    assert library.load_kernels()
    assert len(builds) == len(gpu) == 1


def test_failed_build_is_one_warning_and_plain_operations(gpu, monkeypatch):
    def fail(**_):
        raise RuntimeError(
            "Error building extension 'sgpn_kernels': [1/2]\nnvcc\nkernels.cu(3): error: no such type\n1 error"
        )

    monkeypatch.setattr("torch.utils.cpp_extension.load", fail)
    with pytest.warns(RuntimeWarning, match=r"built: kernels.cu\(3\): error: no such type\. PyTorch's own .* \(nvcc\)"):
        assert not library.load_kernels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not library.load_kernels()


def test_missing_compiler_is_said(gpu, builds, monkeypatch):
    monkeypatch.setenv("PYTORCH_NVCC", "/nowhere/nvcc")
    with pytest.warns(RuntimeWarning, match="no CUDA compiler was found at /nowhere/nvcc"):
        assert not library.load_kernels()
    assert not builds


def test_kernels_can_be_declined(gpu, builds, monkeypatch):
    monkeypatch.setenv("SGPN_KERNELS", "0")
    assert not library.load_kernels()
    assert not builds


def test_cpu_computes_with_plain_operations():
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    assert "LeakyRelu" in type(fused_leaky_relu(x, torch.zeros(4)).grad_fn).__name__
    assert "Lerp" in type(masked_blend(x, x, x)[0].grad_fn).__name__


def test_layers_on_a_gpu_call_the_operators(monkeypatch):
    # Tensors without values need no GPU: what is called, and with which shapes, types and layouts, shows all the same.
    monkeypatch.setattr(library, "load_kernels", lambda: True)
    with FakeTensorMode(), torch.device("cuda"), OperatorNames() as called:
        layer = StyledConv(8, 4, 16, AFFB(4), upsample=True)
        x, features = torch.randn(2, 8, 8, 8), torch.randn(2, 4, 16, 16)
        x, features = (t.contiguous(memory_format=torch.channels_last) for t in (x, features))
        out, mask = layer(x, torch.randn(2, 16), features, features)
    assert called.names == {"upfirdn2d", "masked_blend", "concat_leaky_relu"}
    assert out.shape == (2, 8, 16, 16)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (out, mask))


def test_half_activations_stay_half_beside_float32_parameters(monkeypatch):
    monkeypatch.setattr(library, "load_kernels", lambda: True)
    with FakeTensorMode(), torch.device("cuda"), OperatorNames() as called:
        x, weight, bias = torch.randn(2, 4, 8, 8, dtype=torch.float16), torch.zeros(1), torch.zeros(8)
        assert fused_leaky_relu(x, bias[:4]).dtype == torch.float16
        assert concat_leaky_relu(x, x, weight, bias).dtype == torch.float16
        assert concat_leaky_relu(x, x.float(), weight, bias).dtype == torch.float32
        assert upfirdn2d(x, torch.ones(4, 4)).dtype == torch.float16
        with library.plain_operations():
            fused_leaky_relu(x, bias[:4])
    assert called.names == {"fused_leaky_relu", "concat_leaky_relu", "upfirdn2d"}


class OperatorNames(TorchDispatchMode):
    """Collects the names of our operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function.name().partition("::")
        if namespace == "sgpn":
            self.names.add(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
def test_a_compiled_linear_layer_keeps_its_gain():
    torch.manual_seed(0)
    layer, x = EqualLinear(16, 8, activate=True, bias_init=0.5), torch.randn(3, 16)
    torch.testing.assert_close(torch.compile(layer)(x), layer(x))


def test_compiled_layers_on_a_cpu_are_one_graph():
    layer = StyledConv(8, 4, 16, AFFB(4), upsample=True)
    x, w, features = torch.randn(1, 8, 4, 4), torch.randn(1, 16), torch.randn(1, 4, 8, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, w, features, features), layer(x, w, features, features))


@pytest.mark.skipif(os.environ.get("SGPN_TEST_KERNELS") is not None, reason="the given library is C++ for the CPU")
def test_operators_compute_on_any_device_without_kernels():
    x = torch.ones(1, 2, 2, 2, device="meta")
    assert torch.ops.sgpn.masked_blend(x, x, x)[0].shape == x.shape
