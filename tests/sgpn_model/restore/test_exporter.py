"""Exported files: any batch, the weights of the checkpoint beside them, and no bundle where something is wrong."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sgpn_arch.fusion_arch import find_fusion
from sgpn_data.astronaut import real_faces
from sgpn_data.detection import silent_onnxruntime
from sgpn_model.restore import exporter
from sgpn_model.weights.bundle import PARTS, bundle_of, read_bundle
from sgpn_model.weights.formats import CheckpointError
from sgpn_model.weights.pretrained import find_weights, load_networks

pytest.importorskip("onnxscript", reason="export needs the packages onnx and onnxscript")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_told_before_any_work(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(exporter, "load_checkpoint", lambda _: pytest.fail("the weights were read first"))
    with pytest.raises(exporter.ExportError, match=r'onnxscript .*run: pip install "sgpn\[onnx\]"'):
        exporter.export("default", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def session(path):
    return silent_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_generator_takes_any_batch(bundle, batch):
    network, prior, _ = load_networks(bundle.weights)
    generator = torch.Generator().manual_seed(batch)
    photo, render = (torch.rand(batch, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    coefficients = torch.randn(batch, prior.coeff_dim, generator=generator)
    with torch.no_grad():
        wanted, masks = network.eval()(photo, render, coefficients, return_masks=True)
    inputs = {"photo": photo, "render": render, "coefficients": coefficients}
    restored, mask = session(bundle.part("generator")).run(None, {name: x.numpy() for name, x in inputs.items()})
    np.testing.assert_allclose(restored, wanted, atol=1e-4 * wanted.abs().max())
    np.testing.assert_allclose(mask, masks[64][-1].mean(1, keepdim=True), atol=1e-5)


@pytest.fixture
def program(bundle):
    """The generator's program, inputs of another batch than it was traced with, and what the network makes of them."""
    network, prior, _ = load_networks(bundle.weights)
    generator = torch.Generator().manual_seed(0)
    photo, render = torch.rand(2, 2, 3, 64, 64, generator=generator) * 2 - 1
    inputs = photo, render, torch.randn(2, prior.coeff_dim, generator=generator)
    with torch.no_grad():
        wanted, _ = network.eval()(*inputs, return_masks=True)
    return torch.export.load(bundle.folder / "generator.pt2"), inputs, wanted


def test_pytorchs_program_computes_the_same(program):
    generator, inputs, wanted = program
    with torch.no_grad():
        torch.testing.assert_close(generator.module()(*inputs)[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler (g++)")
@pytest.mark.skipif(torch.__version__ < (2, 6), reason="AOTInductor packages programs since torch 2.6")
def test_pytorchs_program_computes_the_same_when_compiled(program, tmp_path):
    generator, inputs, wanted = program
    package = torch._inductor.aoti_compile_and_package(generator, package_path=str(tmp_path / "generator.pt2"))
    with torch.no_grad():
        restored, _ = torch._inductor.aoti_load_package(package)(*inputs)
    torch.testing.assert_close(restored, wanted, atol=1e-4, rtol=1e-4)


def test_files_hold_no_weights_and_read_those_of_the_checkpoint(bundle, tmp_path):
    assert sum(bundle.part(name).stat().st_size for name in PARTS) < 1 << 20
    shutil.copytree(bundle.folder, tmp_path / "copy")
    (tmp_path / "copy" / bundle.weights.name).unlink()
    with pytest.raises(Exception, match=bundle.weights.name):
        session(tmp_path / "copy" / "generator.onnx")


@pytest.mark.parametrize("part", PARTS)
def test_what_is_constant_is_computed_when_a_file_is_loaded_and_not_in_each_run(bundle, tmp_path, part):
    """Else onnxruntime does not lay out the weights for the processor either, and takes a sixth longer."""
    onnx, onnxruntime = pytest.importorskip("onnx"), silent_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(bundle.part(part), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    stored = {"", *(tensor.name for tensor in graph.initializer)}
    assert len(stored) > 1 and not [node.op_type for node in graph.node if stored.issuperset(node.input)]


def test_files_say_nothing_of_the_machine_that_wrote_them(bundle):
    for name in PARTS:
        assert str(Path(exporter.__file__).parents[2]).encode() not in bundle.part(name).read_bytes()


def test_a_bundle_is_found_beside_its_weights_and_by_its_folder(bundle, tmp_path):
    assert find_weights(bundle.folder) == bundle.weights
    found = bundle_of(bundle.weights)
    assert found == bundle
    found.check()
    assert found.manifest.licence is None and found.manifest.size == 64
    shutil.copy(bundle.weights, tmp_path / "alone.safetensors")
    assert bundle_of(tmp_path / "alone.safetensors") is None


def test_a_changed_or_missing_file_is_named(bundle, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(bundle.folder, folder)
    with (folder / "mesh.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"mesh\.onnx: is not the file that was exported"):
        read_bundle(folder).check()
    (folder / "mesh.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"mesh\.onnx: is missing"):
        read_bundle(folder).check()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": "64"}, "size: expected a whole number"),
        ({"parts": {}}, "lacks regressor, mesh, render, generator"),
        ({"weights": {"file": "../w.safetensors", "sha256": ""}}, "lies outside"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(bundle, tmp_path, change, told):
    content = json.loads((bundle.folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(CheckpointError, match=told):
        read_bundle(tmp_path)


def test_a_folder_without_manifest_is_no_bundle(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder, and no bundle"):
        find_weights(tmp_path)


class Brighter(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        restored, mask = self.module(*inputs)
        return restored + 0.01 * restored.abs().max(), mask


def test_a_file_that_differs_from_pytorch_is_refused(bundle):
    network, prior, template = load_networks(bundle.weights)
    photos, points5 = map(torch.from_numpy, real_faces(64, template))
    program = exporter.programs(network, prior, photos, points5)["generator"]
    path = bundle.part("generator")
    assert exporter._check("generator", program, path, prior, "fp32")["restored"] < 1e-4
    program.module = Brighter(program.module)
    with pytest.raises(exporter.ExportError, match=r"generator\.onnx: not exported, for .* restored is 0\.0"):
        exporter._check("generator", program, path, prior, "fp32")


def test_nothing_is_left_of_an_export_that_fails(bundle, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(exporter, "_traced", lambda name, program: None)
    monkeypatch.setattr(exporter, "_write_onnx", lambda name, *_: (_ for _ in ()).throw(exporter.ExportError(name)))
    with pytest.raises(exporter.ExportError, match="regressor"), caplog.at_level("INFO", "sgpn"):
        exporter.export(bundle.weights, tmp_path / "new")
    assert "writing regressor.onnx (1 of 4)" in caplog.text
    assert not list((tmp_path / "new").iterdir())


class Choosing(nn.Module):
    def forward(self, photo):
        return photo if photo.mean() > 0 else -photo


def test_what_cannot_be_exported_is_named():
    program = exporter.Program(Choosing(), (torch.rand(2, 3, 4, 4),), ["photo"], ["restored"])
    with pytest.raises(exporter.ExportError, match="generator: Choosing cannot be exported: .*guard"):
        exporter._traced("generator", program)


class Fused(nn.Module):
    def __init__(self, fusion):
        super().__init__()
        self.fusion = fusion

    def forward(self, hidden, photo, render):
        fused, mask = self.fusion(hidden, photo, render if self.fusion.uses_render else None)
        return fused * 1 if mask is None else (fused * 1, mask)  # not the photo itself


@pytest.mark.parametrize("name", ["AFFB", "SumFusion", "LQOnly", "ChannelSplitSFT"])
def test_every_fusion_is_exported(name, tmp_path):
    torch.manual_seed(0)
    maps = tuple(torch.randn(2, 8, 4, 4) for _ in range(3))
    names = ["hidden", "photo", "render"]
    program = exporter.Program(Fused(find_fusion(name)(8).eval()), maps, names, ["fused", "mask"])
    path = tmp_path / "fusion.onnx"
    exporter._write_onnx(name, exporter._traced(name, program), program, path, None)
    single = [each[:1] for each in maps]
    taken = {given.name for given in session(path).get_inputs()}
    found = session(path).run(None, {n: x.numpy() for n, x in zip(names, single, strict=True) if n in taken})
    for ours, wanted in zip(found, program(single), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
