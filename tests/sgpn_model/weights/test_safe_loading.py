"""Files of weights that are damaged or meant to do harm: each is refused, says why, and no code of it runs."""

import io
import json
import os
import pickle
import struct
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sgpn_arch import build_network
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_model.weights.checkpoint import (
    FORMAT,
    LEGACY_MAGIC,
    CheckpointError,
    load_checkpoint,
    read_pickle,
    save_checkpoint,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(7)}
TINY = {"type": "D3DFR", "id_dim": 2, "exp_dim": 2, "tex_dim": 2, "backbone": "mobilenet_v2"}


class Harm:
    """Pickles as a call of os.mkdir: whoever unpickles it makes the folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def refusal(path, read=read_pickle):
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


class TestPickles:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_state_dict_is_read(self, tmp_path, zipped):
        torch.save({"net": STATE}, tmp_path / "good.pth", _use_new_zipfile_serialization=zipped)
        found = read_pickle(tmp_path / "good.pth")["net"]
        assert {key: value.tolist() for key, value in found.items()} == {k: v.tolist() for k, v in STATE.items()}

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_not_run(self, tmp_path, zipped):
        path, made = tmp_path / "evil.pth", tmp_path / "made by the pickle"
        torch.save({"net": STATE, "x": Harm(made)}, path, _use_new_zipfile_serialization=zipped)
        assert "mkdir" in refusal(path)
        assert not made.exists()
        torch.load(path, weights_only=False)  # the harm is real
        assert made.exists()

    def test_code_in_a_bare_pickle_is_not_run(self, tmp_path):
        path, made = tmp_path / "evil.pkl", tmp_path / "made by the pickle"
        path.write_bytes(pickle.dumps(Harm(made)))
        assert "not a file that PyTorch wrote" in refusal(path)
        path.write_bytes(LEGACY_MAGIC + pickle.dumps(Harm(made), protocol=2))
        refusal(path)
        assert not made.exists()

    def test_a_zip_bomb(self, tmp_path):
        path = tmp_path / "bomb.pth"
        torch.save({"zeros": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
        with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w") as bomb:
            for entry in plain.infolist():
                bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 100_000
        assert "zip bomb" in refusal(path)

    def test_a_tensor_that_repeats_one_number(self, tmp_path):
        path = tmp_path / "wide.pth"
        torch.save({"net": {"weight": torch.zeros(1).expand(10**12)}}, path)
        assert path.stat().st_size < 10_000
        assert "'net.weight' of shape (1000000000000,)" in refusal(path)

    def test_a_size_that_the_file_does_not_hold(self, tmp_path):
        """The number of elements in the pickle of an old file, made a million times larger."""
        path = tmp_path / "lying.pth"
        torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        number = b"M" + struct.pack("<H", 1000)  # a pickled 1000
        assert number in content
        path.write_bytes(content.replace(number, b"J" + struct.pack("<i", 1_000_000_000)))
        refusal(path)

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_truncated_file(self, tmp_path, part, zipped):
        path = tmp_path / "short.pth"
        torch.save({"weight": torch.randn(1000)}, path, _use_new_zipfile_serialization=zipped)
        os.truncate(path, int(path.stat().st_size * part))
        refusal(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is an empty file"),
            (b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", "web page"),
            (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a file that PyTorch wrote"),
        ],
    )
    def test_other_files(self, tmp_path, content, message):
        (tmp_path / "other.pth").write_bytes(content)
        assert message in refusal(tmp_path / "other.pth")

    def test_a_zip_file_of_something_else(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "photos.pth", "w") as file:
            file.writestr("photo.txt", "not a tensor")
        refusal(tmp_path / "photos.pth")

    def test_a_container_of_itself(self, tmp_path):
        endless = {"weight": torch.zeros(1)}
        endless["again"] = endless
        torch.save(endless, tmp_path / "endless.pth")
        assert "contains itself" in refusal(tmp_path / "endless.pth")

    def test_no_file(self, tmp_path):
        assert "no such file" in refusal(tmp_path / "nowhere.pth")


# ---------------------------------------------------------------------------------------------------------------------
# Our own format


def write_safetensors(path, header: dict, data: bytes, claimed: int | None = None):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + data)


def header(**entry):
    about = {"format": FORMAT, "metadata": json.dumps({"archs": {"net": {"type": "D3DFR"}}})}
    return {"__metadata__": about, "net.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **entry}}


class TestLyingHeaders:
    def test_the_honest_one_is_read(self, tmp_path):
        write_safetensors(tmp_path / "good.safetensors", header(), bytes(24))
        assert load_checkpoint(tmp_path / "good.safetensors").weights["net"]["weight"].shape == (2, 3)

    @pytest.mark.parametrize(
        "change",
        [
            {"shape": [2, 3000000]},
            {"shape": [2**40, 2**40]},
            {"data_offsets": [0, 2400]},
            {"data_offsets": [24, 0]},
            {"dtype": "F64"},
            {"dtype": "F12"},
            {"shape": [-2, -3]},
        ],
        ids=str,
    )
    def test_a_tensor_that_is_not_what_the_file_holds(self, tmp_path, change):
        path = tmp_path / "lying.safetensors"
        write_safetensors(path, header(**change), bytes(24))
        assert "not a readable safetensors file" in refusal(path, load_checkpoint)

    @pytest.mark.parametrize("claimed", [0, 1, 10**6, 2**63, 2**64 - 1])
    def test_a_header_of_another_length(self, tmp_path, claimed):
        path = tmp_path / "lying.safetensors"
        write_safetensors(path, header(), bytes(24), claimed)
        refusal(path, load_checkpoint)

    def test_two_tensors_in_one_place(self, tmp_path):
        path = tmp_path / "lying.safetensors"
        doubled = {**header(), "net.bias": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
        write_safetensors(path, doubled, bytes(24))
        refusal(path, load_checkpoint)


@pytest.fixture
def regressor(tmp_path):
    """A checkpoint with one regressor: its path, weights and metadata."""
    state = build_network(TINY).state_dict()
    metadata = {"archs": {"network_shape": TINY}}
    save_checkpoint(tmp_path / "shape.safetensors", {"network_shape": state}, metadata)
    return tmp_path / "shape.safetensors", state, metadata


def rewritten(path, state, archs):
    """A file as save_checkpoint writes it, without its scruples."""
    tensors = {f"network_shape.{key}": value.contiguous() for key, value in state.items()}
    save_file(tensors, path, {"format": FORMAT, "metadata": json.dumps({"archs": {"network_shape": archs}})})
    return lambda _: load_checkpoint(path).network("network_shape")


class TestNetworksThatDoNotFit:
    def test_the_honest_one_is_built(self, regressor):
        path, state, _ = regressor
        network = load_checkpoint(path).network("network_shape")
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())

    def test_another_architecture(self, regressor):
        path, state, _ = regressor
        read = rewritten(path, state, {**TINY, "backbone": "resnet18"})
        assert "'backbone.conv1.weight' is missing" in refusal(path, read)

    def test_other_shapes(self, regressor):
        path, state, _ = regressor
        read = rewritten(path, state, {**TINY, "id_dim": 3})
        assert "has shape (2, 1280, 1, 1), expected (3, 1280, 1, 1)" in refusal(path, read)

    def test_a_description_that_would_fill_the_memory(self, regressor):
        """Refused before anything of that size is made: 10^11 coefficients would take 500 TB."""
        path, state, _ = regressor
        read = rewritten(path, state, {**TINY, "id_dim": 10**11})
        assert "expected (100000000000, 1280, 1, 1)" in refusal(path, read)

    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_weights_that_are_not_finite(self, regressor, value):
        path, state, _ = regressor
        state["final_layers.0.bias"] = torch.tensor([0.0, value])
        read = rewritten(path, state, TINY)
        assert "'final_layers.0.bias' holds NaN or infinity" in refusal(path, read)

    @pytest.mark.parametrize("archs", [{"type": "D3DFR", "id_dim": "many"}, {"type": "Nothing"}, {}, "D3DFR", 7])
    def test_descriptions_that_mean_nothing(self, regressor, archs):
        path, state, _ = regressor
        refusal(path, rewritten(path, state, archs))


class Marked(nn.Module):
    """Notes that it was built, as a network that opens files would have opened them."""

    built: list[int] = []

    def __init__(self, blocks: int = 1):
        super().__init__()
        self.built.append(blocks)
        self.blocks = nn.Sequential(*(nn.Linear(1, 1) for _ in range(blocks)))


@pytest.fixture
def marked(monkeypatch):
    monkeypatch.setattr(Marked, "built", [])
    monkeypatch.setattr(Marked, "__module__", "my_networks")  # a folder "tests" is torch-fidelity's, which installs one
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Marked", Marked)
    return Marked.built


class TestWhatMayBeBuilt:
    """Only networks of this library, of plugins and of one's own program, and none that is larger than its file."""

    @pytest.mark.parametrize(
        "archs", [{"type": "Marked"}, {"type": "PhotoOnly", "network": {"type": "Marked"}, "size": 64}]
    )
    def test_a_network_of_another_package_is_built_only_where_the_user_says_so(
        self, tmp_path, marked, monkeypatch, archs
    ):
        monkeypatch.setattr(Marked, "__module__", "basicsr.archs.marked_arch")
        build = rewritten(tmp_path / "a.safetensors", {"blocks.0.bias": torch.zeros(1)}, archs)
        message = refusal(tmp_path / "a.safetensors", build)
        assert "'Marked' is a network of basicsr" in message and "set SGPN_ALLOW_ARCHS=Marked" in message and not marked
        monkeypatch.setenv("SGPN_ALLOW_ARCHS", "Marked")
        refusal(tmp_path / "a.safetensors", build)  # for its tensors now
        assert marked == [1]

    def test_ones_own_is_built(self, tmp_path, marked):
        state = {f"blocks.0.{key}": value for key, value in nn.Linear(1, 1).state_dict().items()}
        rewritten(tmp_path / "a.safetensors", state, {"type": "Marked"})(None)
        assert marked == [1]

    def test_a_description_of_endless_layers(self, tmp_path, marked):
        began = time.perf_counter()
        build = rewritten(
            tmp_path / "a.safetensors", {"blocks.0.bias": torch.zeros(1)}, {"type": "Marked", "blocks": 10**8}
        )
        message = refusal(tmp_path / "a.safetensors", build)
        assert "more than 1,016 layers and tensors" in message and time.perf_counter() - began < 5


# ---------------------------------------------------------------------------------------------------------------------
# Files that need no other file


def other_model():
    """The open model with one vertex moved."""
    parts = MorphableModel.open().tensors()
    parts["shape_mean"] = parts["shape_mean"].clone()
    parts["shape_mean"][0] += 0.01
    return MorphableModel(**parts, name="moved", face_normals="unit")


class TestMorphableModels:
    def test_one_that_does_not_ship_is_in_the_file(self, regressor):
        path, state, metadata = regressor
        save_checkpoint(path, {"network_shape": state}, metadata, morphable_model=other_model())
        found = load_checkpoint(path).morphable_model()
        assert found.name == "moved" and found.face_normals == "unit"
        torch.testing.assert_close(found.shape_mean, other_model().shape_mean, rtol=0, atol=1e-6)
        for key in ("id_basis", "exp_basis", "tex_basis", "tex_mean", "triangles", "landmarks", "reference5"):
            assert torch.equal(getattr(found, key), getattr(other_model(), key)), key

    def test_the_one_that_ships_is_not(self, regressor):
        path, state, metadata = regressor
        before = path.stat().st_size
        save_checkpoint(path, {"network_shape": state}, metadata, morphable_model=MorphableModel.open())
        assert path.stat().st_size < before + 1000
        assert load_checkpoint(path).morphable_model().name == "open_face"

    def test_a_change_of_the_one_that_ships_is_noticed(self, regressor, monkeypatch):
        path, state, metadata = regressor
        save_checkpoint(path, {"network_shape": state}, metadata, morphable_model=MorphableModel.open())
        changed = other_model()
        monkeypatch.setattr(MorphableModel, "open", classmethod(lambda cls: changed))
        message = refusal(path, lambda _: load_checkpoint(path).morphable_model())
        assert "another version of the morphable model 'open_face'" in message

    def test_a_broken_one_is_named(self, regressor):
        path, state, metadata = regressor
        broken = MorphableModel(**other_model().tensors())
        broken.triangles[0, 0] = 10**6
        save_checkpoint(path, {"network_shape": state}, metadata, morphable_model=broken)
        assert "triangles points outside" in refusal(path, lambda _: load_checkpoint(path).morphable_model())


def test_nothing_half_written_when_the_disk_is_full(regressor, monkeypatch):
    path, state, metadata = regressor
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sgpn_arch.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"network_shape": state}, metadata)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_reading_from_memory_is_what_the_file_says():
    """The magic number that tells old PyTorch files apart is PyTorch's."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=False)
    assert buffer.getvalue().startswith(LEGACY_MAGIC)
