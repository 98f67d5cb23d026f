"""Checkpoints: what is written is what is read, damage is named, and a failed write leaves the old file alone."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_model.weights.checkpoint import (
    FORMAT,
    CheckpointError,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from sgpn_model.weights.pretrained import find_weights

ARCHS = {"network_g": {"type": "Net"}, "network_shape": {"type": "Net"}}


def network(seed=0):
    torch.manual_seed(seed)
    # Batch normalisation brings buffers, one of them an integer.
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(2, 5))
    net(torch.randn(2, 3, 4, 4))
    return net


@pytest.fixture
def saved(tmp_path):
    states = {"network_g": network(1).state_dict(), "network_shape": network(2).state_dict()}
    path = tmp_path / "deep" / "weights.safetensors"
    save_checkpoint(path, states, {"archs": ARCHS, "step": 7, "name": "ünïcode"})
    return path, states


class TestRoundTrip:
    def test_full_precision_is_exact(self, saved):
        path, states = saved
        checkpoint = load_checkpoint(path)
        assert set(checkpoint.weights) == set(states)
        for name, state in states.items():
            assert set(checkpoint.weights[name]) == set(state)
            for key, value in state.items():
                found = checkpoint.weights[name][key]
                assert found.dtype == value.dtype and torch.equal(found, value), key
        assert states["network_g"]["1.num_batches_tracked"].dtype == torch.int64

    def test_a_morphable_model_that_is_exact_in_half_precision_takes_half_the_room(self, tmp_path):
        open_model = MorphableModel.open()
        half = {key: value.half().float() for key, value in open_model.tensors().items() if value.is_floating_point()}
        files = []
        for factor in (1.0, 1.0001):
            tensors = {**open_model.tensors(), **half, "shape_mean": half["shape_mean"] * factor + 0.001}
            tensors["tex_basis"] = tensors["tex_basis"] * factor
            model = MorphableModel(**tensors, name="mine", face_normals=open_model.face_normals)
            path = tmp_path / f"{factor}.safetensors"
            save_checkpoint(path, {}, {"archs": {}}, None, model)
            assert load_checkpoint(path).morphable_model().fingerprint() == model.fingerprint()
            files.append(path.stat().st_size)
        assert files[1] - files[0] == 2 * half["tex_basis"].numel()

    def test_half_precision_comes_back_as_float32_and_integers_stay(self, saved, tmp_path):
        _, states = saved
        path = tmp_path / "half.safetensors"
        save_checkpoint(path, states, {"archs": ARCHS}, dtype=torch.float16)
        for name, state in load_checkpoint(path).weights.items():
            for key, value in state.items():
                truth = states[name][key]
                assert value.dtype == truth.dtype
                if truth.is_floating_point():
                    # Half precision has eleven significant bits, and steps of 2^-24 near zero.
                    assert ((value - truth).abs() <= truth.abs() * 2**-11 + 2**-24).all()
                else:
                    assert torch.equal(value, truth)
        with safe_open(path, framework="pt") as file:
            assert file.get_tensor("network_g.0.weight").dtype == torch.float16

    def test_memory_layout_and_views_do_not_matter(self, tmp_path):
        weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
        whole = torch.arange(12.0).view(3, 4)
        state = {"weight": weight, "part": whole[:, 1], "same": whole, "again": whole}
        save_checkpoint(tmp_path / "a.safetensors", {"network_g": state}, {"archs": {"network_g": {"type": "Net"}}})
        found = load_checkpoint(tmp_path / "a.safetensors").weights["network_g"]
        assert all(torch.equal(found[key], value) for key, value in state.items())

    def test_metadata(self, saved):
        assert load_checkpoint(saved[0]).metadata == {"archs": ARCHS, "step": 7, "name": "ünïcode"}


class TestBytes:
    """Files can be told by their checksums."""

    def test_the_same_weights_saved_twice_are_one_file(self, tmp_path):
        for name in "ab":
            states = {"network_g": network(1).state_dict(), "network_shape": network(2).state_dict()}
            save_checkpoint(tmp_path / name, states, {"archs": ARCHS, "step": 7}, torch.float16)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_checkpoint_that_is_loaded_and_saved_is_the_same_file(self, tiny_weights, tmp_path):
        checkpoint = load_checkpoint(tiny_weights)
        model = checkpoint.morphable_model()
        save_checkpoint(tmp_path / "again", checkpoint.weights, checkpoint.metadata, morphable_model=model)
        assert (tmp_path / "again").read_bytes() == Path(tiny_weights).read_bytes()

    def test_the_default_weights_loaded_and_saved_hold_the_same_tensors(self, tmp_path):
        """Their header was written before it had an order; what follows it is the same, byte for byte."""
        path = find_weights("default")
        checkpoint = load_checkpoint(path)
        options = {"dtype": torch.float16, "morphable_model": checkpoint.morphable_model()}
        save_checkpoint(tmp_path / "again", checkpoint.weights, checkpoint.metadata, **options)
        bodies = []
        for file in (path, tmp_path / "again"):
            content = file.read_bytes()
            bodies.append(content[8 + int.from_bytes(content[:8], "little") :])
        assert bodies[0] == bodies[1] and load_checkpoint(tmp_path / "again").metadata == checkpoint.metadata


class TestRefusalToWrite:
    def test_every_network_must_be_described(self, tmp_path):
        for metadata in ({}, {"archs": {"network_shape": {}}}):
            with pytest.raises(CheckpointError, match="'archs' does not describe network_g"):
                save_checkpoint(tmp_path / "a.safetensors", {"network_g": {"a": torch.zeros(1)}}, metadata)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("inf"), None), (1e6, torch.float16)])
    def test_what_is_not_finite_does_not_replace_what_is(self, saved, value, dtype):
        path, _ = saved
        before = path.read_bytes()
        with pytest.raises(CheckpointError, match=r"weights\.safetensors: not written, for 'network_g\.a' holds"):
            save_checkpoint(path, {"network_g": {"a": torch.tensor([0, value])}}, {"archs": ARCHS}, dtype)
        assert path.read_bytes() == before


class TestDamage:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere: no such file"):
            load_checkpoint(tmp_path / "nowhere")

    @pytest.mark.parametrize("part", [0.999, 0.5, 0.01, 0.0])
    def test_a_truncated_file(self, saved, part):
        path, _ = saved
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(CheckpointError, match=r"weights\.safetensors: not a readable safetensors file.*complete"):
            load_checkpoint(path)

    def test_another_kind_of_file(self, tmp_path):
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"a\.pth: not a readable safetensors file"):
            load_checkpoint(tmp_path / "a.pth")

    @pytest.mark.parametrize("header", [None, {"format": "pt"}])
    def test_safetensors_of_others(self, tmp_path, header):
        save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors", metadata=header)
        with pytest.raises(CheckpointError, match=r"a\.safetensors: not a checkpoint of this library"):
            load_checkpoint(tmp_path / "a.safetensors")

    @pytest.mark.parametrize("metadata", [None, "{", "[]", "{}", '{"archs": null}'])
    def test_metadata_that_describe_no_networks(self, tmp_path, metadata):
        header = {"format": FORMAT} if metadata is None else {"format": FORMAT, "metadata": metadata}
        save_file({"network_g.a": torch.zeros(3)}, tmp_path / "a.safetensors", metadata=header)
        with pytest.raises(CheckpointError, match=r"a\.safetensors: its metadata does not describe networks"):
            load_checkpoint(tmp_path / "a.safetensors")

    def test_a_tensor_of_no_network(self, tmp_path):
        header = {"format": FORMAT, "metadata": json.dumps({"archs": {"network_g": {"type": "Net"}}})}
        save_file({"network_x.a": torch.zeros(3)}, tmp_path / "a.safetensors", metadata=header)
        with pytest.raises(CheckpointError, match=r"'network_x\.a' belongs to no network"):
            load_checkpoint(tmp_path / "a.safetensors")


class TestLoadWeights:
    def test_complete_weights(self):
        net, other = network(1), network(2)
        load_weights(net, other.state_dict(), "here")
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("0.bias"), r"^here: '0\.bias' is missing$"),
            (lambda state: state.update(x=torch.zeros(1)), r"^here: 'x' is not part of Sequential$"),
            (lambda state: state.update({"2.bias": torch.zeros(6)}), r"'2\.bias' has shape \(6,\), expected \(5,\)"),
            (lambda state: state.update({"2.bias": torch.full((5,), torch.nan)}), r"'2\.bias' holds NaN or infinity"),
            (lambda state: state.update({"2.bias": torch.full((5,), torch.inf)}), r"'2\.bias' holds NaN or infinity"),
            (lambda state: state.clear(), r"'0\.weight' is missing \(and 8 more\)"),
        ],
    )
    def test_faults_are_named_and_nothing_is_loaded(self, change, message):
        net, state = network(1), network(2).state_dict()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        change(state)
        with pytest.raises(CheckpointError, match=message):
            load_weights(net, state, "here")
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class TestAtomicity:
    def test_an_interrupted_checkpoint(self, saved, monkeypatch):
        path, states = saved
        before = path.read_bytes()

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, states, {"archs": ARCHS, "step": 8})
        assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


class TestBuilding:
    """A network is built around its weights: nothing drawn, nothing copied."""

    OPTIONS = {
        "type": "D3DFR",
        "id_dim": 2,
        "exp_dim": 2,
        "tex_dim": 2,
        "backbone": "resnet18",
        "imagenet_normalisation": True,
    }

    @pytest.fixture
    def checkpoint(self, tmp_path):
        from sgpn_arch import build_network

        torch.manual_seed(3)
        state = build_network(self.OPTIONS).state_dict()
        save_checkpoint(
            tmp_path / "a.safetensors", {"network_shape": state}, {"archs": {"network_shape": self.OPTIONS}}
        )
        return load_checkpoint(tmp_path / "a.safetensors")

    def test_the_network_is_the_one_that_was_saved(self, checkpoint):
        from sgpn_arch import build_network

        expected = build_network(self.OPTIONS).eval()
        expected.load_state_dict(checkpoint.weights["network_shape"])
        found = checkpoint.network("network_shape").eval()
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(found(image), expected(image))
        # What is not saved, as ImageNet's mean, is made as ever.
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.std, expected.std)
        assert all(parameter.requires_grad for parameter in found.parameters())

    def test_weights_are_in_memory_once(self, checkpoint):
        found = checkpoint.network("network_shape").state_dict()
        for name, value in checkpoint.weights["network_shape"].items():
            assert found[name].data_ptr() == value.data_ptr(), name

    def test_the_random_numbers_of_others_are_not_used_up(self, checkpoint):
        torch.manual_seed(4)
        expected = torch.rand(3)
        torch.manual_seed(4)
        checkpoint.network("network_shape")
        assert torch.equal(torch.rand(3), expected)
