"""Files of weights that were changed at random, by kinds of damage: each is used or refused by name, none ends in a traceback."""

import contextlib
import io
import json
import math
import random
import struct
import time
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from safetensors.torch import load, save

from oracles import released_fixtures
from oracles.tiny_weights import dome_model
from sgpn_arch import build_network
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_model import cli
from sgpn_model.weights.checkpoint import CheckpointError, save_checkpoint
from sgpn_model.weights.pretrained import load_networks

LONGEST = 10.0  # seconds for one file
ARCHS = {
    "network_g": {
        "type": "SGPN",
        "size": 64,
        "width": 0.02,
        "max_channels": 8,
        "style_dim": 8,
        "latent_dim": 8,
        "coeff_dim": 45,
        "mapping_layers": 2,
        "fusion": "AFFB",
        "share_encoder": True,
    },
    "network_shape": {"type": "TinyD3DFR", "id_dim": 4, "exp_dim": 3, "tex_dim": 5},
}
WRONG = [
    *(None, True, -1, 0, 3, 64.0, 1e-300, 1e308, math.nan, math.inf, 10**8, 10**12, 10**30, 10**400),
    *("", "x", "SGPN", "AFFB", "D3DFR", "SGPNDiscriminator", "ConcatStyleGAN2Generator", "ffhq", "\udcff", "ä" * 10000),
    *([], ["ffhq"], [1, [2]], {}, {"type": "SGPN"}, {"a": {"b": None}}, json.loads("[" * 100 + "]" * 100)),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A small checkpoint that restores."""
    torch.manual_seed(0)
    states = {name: build_network(options).state_dict() for name, options in ARCHS.items()}
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    about = {"archs": ARCHS, "template": "ffhq", "protocol": "open", "task": "restore", "step": 3, "size": 64}
    save_checkpoint(path, states, about, morphable_model=MorphableModel(**dome_model(), name="dome"))
    return path.read_bytes()


def verdict(path) -> tuple[int, str]:
    """Exit code and output of ``sgpn weights verify``, after ``show`` and ``load_networks`` did not fall over."""
    began = time.perf_counter()
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        shown = cli.main(["weights", "show", str(path)])
        code = cli.main(["weights", "verify", str(path)])
    assert code in (0, 1) and shown <= code, output.getvalue()
    with contextlib.suppress(CheckpointError):
        load_networks(path)
        assert code == 0, "restoring takes what verify refuses"
    assert time.perf_counter() - began < LONGEST
    assert str(path) in output.getvalue()
    return code, output.getvalue()


def taken_apart(content: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def put_together(header: dict | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


# ---------------------------------------------------------------------------------------------------------------------
# Metadata


def places(value, place=()):
    """The keys that lead to every value of nested mappings."""
    for key, part in value.items():
        yield (*place, key)
        if isinstance(part, dict):
            yield from places(part, (*place, key))


def with_metadata(content: bytes, change) -> bytes:
    """The file with changed metadata, as if it had been written with them."""
    header, body = taken_apart(content)
    about = header["__metadata__"]
    metadata = json.loads(about["metadata"])
    change(metadata)
    about["metadata"] = json.dumps(metadata)
    del about["sha256"]
    return put_together(header, body)


def replaced(place, value):
    def change(metadata):
        for key in place[:-1]:
            metadata = metadata[key]
        metadata[place[-1]] = value

    return change


def removed(place):
    def change(metadata):
        for key in place[:-1]:
            metadata = metadata[key]
        del metadata[place[-1]]

    return change


def metadata_of(content: bytes) -> dict:
    return json.loads(taken_apart(content)[0]["__metadata__"]["metadata"])


def test_metadata_of_every_wrong_type_and_range(whole, tmp_path):
    """A refusal names the file and the key; what is taken builds the same networks."""
    rng, path = random.Random(13), tmp_path / "mutated.safetensors"
    found = list(places(metadata_of(whole)))
    changes = [(place, replaced(place, value)) for place in found for value in WRONG]
    changes = rng.sample(changes, 90) + [(place, removed(place)) for place in found]
    refused = 0
    for place, change in changes:
        path.write_bytes(with_metadata(whole, change))
        code, output = verdict(path)
        refused += code
        told = next((line for line in output.splitlines() if "WRONG: " in line), "")
        assert not code or str(path) in told, output
        assert len(output) < 20_000, place
    assert refused > len(changes) / 2


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("template",), ["ffhq"], "template: expected text or ~ (nothing), found ['ffhq']"),
        (("step",), "many", "step: expected a whole number of at least 0 or ~ (nothing), found 'many'"),
        (("archs", "network_g", "size"), 64.0, "archs.network_g.size: expected a power of two from 64 to 1024, found 64.0"),
        (("archs", "network_g", "style_dim"), 0, "archs.network_g.style_dim: expected a whole number of at least 1, found 0"),
        (("archs", "network_g", "max_channels"), 10**12, "network_g: 'encoder.stages.0.bias' has shape (8,), expected (10,)"),
        (("archs", "network_g", "style_dim"), 10**400, "network_g: "),
        (("archs", "network_g", "fusion"), ["AFFB"], "archs.network_g.fusion: expected text, found ['AFFB']"),
        (("archs", "network_g", "type"), "SGPNDiscriminator", "archs.network_g.style_dim: unknown option"),
        (("archs", "network_shape"), "D3DFR", "archs.network_shape: expected a mapping of options, found 'D3DFR'"),
        (("archs", "network x"), {"type": "SGPN"}, "archs.network x: expected a name of letters, digits and _"),
        (("archs",), [], "archs: expected a mapping of options, found []"),
        (("morphable_model", "face_normals"), 3, "morphable_model.face_normals: expected text, found 3"),
        (("more",), json.loads("[" * 100 + "]" * 100), "nested more than 20 deep"),
    ],
)  # fmt: skip
def test_the_key_is_named(whole, tmp_path, place, value, message):
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(with_metadata(whole, replaced(place, value)))
    code, output = verdict(path)
    assert code == 1 and message in output


def test_json_that_is_nested_too_deep_to_be_read(whole, tmp_path):
    header, body = taken_apart(whole)
    header["__metadata__"]["metadata"] = "[" * 100_000
    (tmp_path / "deep.safetensors").write_bytes(put_together(header, body))
    code, output = verdict(tmp_path / "deep.safetensors")
    assert code == 1 and "its metadata does not describe networks" in output


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, inserted or doubled."""
    content, size = bytearray(content), len(content)
    start = rng.choice([rng.randrange(size), rng.randrange(min(size, 3000))])
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 8])):
            content[rng.choice([start, rng.randrange(size)])] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[start:]
    elif kind == 2:
        content[start : start + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
    elif kind == 3:
        content[start : start + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1]))
    else:
        content[start:start] = content[: rng.randrange(200)]
    return bytes(content)


def test_damaged_bytes_of_a_checkpoint(whole, tmp_path):
    """None of it goes unseen, wherever it is."""
    rng, path = random.Random(5), tmp_path / "damaged.safetensors"
    for _ in range(60):
        content = damaged(whole, rng)
        path.write_bytes(content)
        code, output = verdict(path)
        assert code == int(content != whole) or json_alike(content, whole), output


def json_alike(content: bytes, whole: bytes) -> bool:
    """Whether only spaces of the header, or what nothing reads, differ."""
    (header, body), (expected, same) = taken_apart(content), taken_apart(whole)
    known = ("format", "metadata", "sha256")
    about, wanted = ({key: each["__metadata__"].get(key) for key in known} for each in (header, expected))
    tensors = [{key: value for key, value in each.items() if key != "__metadata__"} for each in (header, expected)]
    return body == same and tensors[0] == tensors[1] and (about == wanted or "sha256" not in about)


def test_a_flipped_bit_of_a_number_is_seen_by_its_checksum(whole, tmp_path):
    content = bytearray(whole)
    content[-1000] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(content)
    code, output = verdict(tmp_path / "flipped.safetensors")
    assert code == 1 and "its sha256 is another" in output
    (tmp_path / "whole.safetensors").write_bytes(whole)
    code, output = verdict(tmp_path / "whole.safetensors")
    assert code == 0 and "its checksum is that of its tensors and metadata" in output


def test_a_file_from_before_there_were_checksums(whole, tmp_path):
    (tmp_path / "old.safetensors").write_bytes(with_metadata(whole, lambda _: None))
    code, output = verdict(tmp_path / "old.safetensors")
    assert code == 0 and "it has no checksum" in output and "it restores photos" in output


def test_headers_in_another_order_mean_the_same(whole, tmp_path):
    header, body = taken_apart(whole)
    (tmp_path / "other.safetensors").write_bytes(put_together(dict(reversed(header.items())), body))
    assert verdict(tmp_path / "other.safetensors")[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda header, key: header[key].update(dtype="F8_E4M3"),
        lambda header, key: header[key].update(dtype="Ф32"),
        lambda header, key: header[key].update(shape=[2**63, 2**63, 0]),
        lambda header, key: header[key].update(shape=[-1]),
        lambda header, key: header[key].update(shape=7),
        lambda header, key: header[key].update(data_offsets=[8, 0]),
        lambda header, key: header.update({f"{key}x": header[key]}),
        lambda header, key: header["__metadata__"].update(metadata=7),
        lambda header, key: header["__metadata__"].update(format=[]),
        lambda header, key: header.update(__metadata__="\udcff"),
        lambda header, key: header.pop("__metadata__"),
    ],
)
def test_headers_that_lie(whole, tmp_path, change):
    header, body = taken_apart(whole)
    change(header, "network_g.mapping.layers.0.bias")
    (tmp_path / "lying.safetensors").write_bytes(put_together(header, body))
    code, output = verdict(tmp_path / "lying.safetensors")
    assert "__metadata__" not in header or code == 1, output


def test_text_that_is_not_utf8(whole, tmp_path):
    header, body = taken_apart(whole)
    text = json.dumps(header).encode().replace(b"ffhq", b"\xff\xfe\x00\xff")
    (tmp_path / "bytes.safetensors").write_bytes(put_together(text, body))
    assert verdict(tmp_path / "bytes.safetensors")[0] == 1


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex64, torch.bool])
def test_numbers_of_every_type(tmp_path, dtype):
    (tmp_path / "plain.safetensors").write_bytes(save({"a": torch.ones(3).to(dtype)}))
    assert verdict(tmp_path / "plain.safetensors")[0] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Morphable models


def damaged_model(tmp_path, key, value) -> str:
    """The output of verify about a model's file in which a tensor is another."""
    MorphableModel(**dome_model(), name="dome").save(tmp_path / "good.safetensors")
    content = (tmp_path / "good.safetensors").read_bytes()
    tensors = load(content)
    assert verdict(tmp_path / "good.safetensors")[0] == 0
    tensors[key] = value(tensors[key]) if callable(value) else value
    about = taken_apart(content)[0]["__metadata__"]
    (tmp_path / "bad.safetensors").write_bytes(save(tensors, about))
    code, output = verdict(tmp_path / "bad.safetensors")
    assert code == 1
    return output


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *((key, lambda t: t.index_fill(0, torch.tensor([1]), math.nan), f"{key} holds NaN")
          for key in ("shape_mean", "tex_mean", "id_basis", "exp_basis", "tex_basis")),
        ("shape_mean", lambda t: t * math.inf, "shape_mean holds NaN, infinity"),
        ("shape_mean", torch.zeros(0, 3), "shape_mean has shape (0, 3)"),
        ("shape_mean", torch.tensor(1.0), "shape_mean has shape ()"),
        ("shape_mean", lambda t: t * torch.tensor([1.0, 1, 0]) * torch.tensor([1.0, 0, 0]), "1058 triangles without area"),
        ("triangles", lambda t: torch.cat([t, torch.tensor([[5, 5, 9]])]).int(), "1 triangles without area"),
        ("triangles", lambda t: t + 1, "triangles points outside its 576 vertices"),
        ("triangles", lambda t: t.float(), "triangles are torch.float32, expected whole numbers"),
        ("triangles", torch.zeros(0, 3, dtype=torch.int32), "triangles has shape (0, 3)"),
        ("triangles", lambda t: t[:, :2].contiguous(), "triangles has shape (1058, 2)"),
        ("landmarks", lambda t: t.flip(0), "landmarks that are no face"),
        ("landmarks", lambda t: torch.zeros_like(t), "landmarks that are no face"),
        ("landmarks", lambda t: t - 1000, "landmarks points outside"),
    ],
)  # fmt: skip
def test_a_morphable_model_with_something_wrong(tmp_path, key, value, message):
    assert message in damaged_model(tmp_path, key, value)


def test_a_flat_triangle_of_the_model_in_a_checkpoint(whole, tmp_path):
    """Verify finds in the model that a checkpoint brings what it finds in a model's own file."""
    header, body = taken_apart(whole)
    start = header["morphable_model.triangles"]["data_offsets"][0]
    del header["__metadata__"]["sha256"]
    body = body[:start] + body[start + 8 : start + 16] + body[start + 8 :]
    (tmp_path / "flat.safetensors").write_bytes(put_together(header, body))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert cli.main(["weights", "verify", str(tmp_path / "flat.safetensors")]) == 1
    assert "the morphable model has 1 triangles without area" in output.getvalue()


def basel_mutants(rng: random.Random):
    arrays = released_fixtures.bfm_arrays(100)
    values = [
        *(np.nan, np.array([[1 + 2j]]), "text", np.array(["a", "b"]), np.array([], float), {"field": 1.0}),
        *(
            np.array([[1, "x"]], object),
            scipy.sparse.eye(3, format="csc"),
            np.zeros((2, 3, 4)),
            np.full((1, 300), np.inf),
        ),
    ]
    for key in ("meanshape", "meantex", "idBase", "exBase", "texBase", "tri", "keypoints"):
        yield {name: value for name, value in arrays.items() if name != key}
        yield {**arrays, key: arrays[key].astype(float) + 0.5}
        for value in rng.sample(values, 4):
            yield {**arrays, key: value}


def test_basel_models_with_something_wrong(tmp_path):
    rng, path = random.Random(2), tmp_path / "BFM_model_front.mat"
    for arrays in basel_mutants(rng):
        scipy.io.savemat(path, arrays)
        code, output = verdict(path)
        assert code == 1 or all(np.issubdtype(np.asarray(value).dtype, np.number) for value in arrays.values()), output
    scipy.io.savemat(path, released_fixtures.bfm_arrays(100))
    content = path.read_bytes()
    for _ in range(40):
        path.write_bytes(damaged(content, rng))
        verdict(path)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's files, and archives


def odd_contents():
    shared = [torch.ones(2)]
    for _ in range(15):
        shared = [shared] * 9
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    state = released_fixtures.sgpn_state(size=64, width=0.02, max_channels=8)
    first, mapping = "netE.ecd0.0.0.weight", "netG.mlp.1.weight"
    return {
        "nested": nested,
        "sparse": torch.eye(3).to_sparse(),
        "compressed rows": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "one byte": torch.ones(3).to(torch.float8_e4m3fn),
        "shared": shared,
        "no tensors": {"a": 1, "b": [None, "x"]},
        "no mapping": [1, 2],
        "keys that are no text": {(1, 2): torch.ones(2), 3: torch.ones(1), None: {True: torch.ones(1)}},
        "an empty tensor": {**state, mapping: torch.zeros(0, 8)},
        "a scalar": {**state, first: torch.tensor(1.0)},
        "a huge number in a name": {**state, "netG.to_rgbs.99999999999.conv.weight": torch.zeros(1)},
        "a wide shape": {**state, "netG.input.input": torch.zeros(1, 10**6, 1, 1), first: torch.zeros(10**6, 1, 1, 1)},
        "no tensor": {**state, mapping: 7},
        "whole numbers": {**state, mapping: state[mapping].long()},
        "complex": {**state, mapping: state[mapping] * 1j},
    }


@pytest.mark.parametrize("name", odd_contents())
def test_odd_contents_of_pytorchs_files(tmp_path, name, recwarn):
    path = tmp_path / "odd.pth"
    torch.save(odd_contents()[name], path)
    recwarn.clear()
    verdict(path)
    assert not list(recwarn)


@pytest.mark.parametrize("kind", ["pth", "old pth", "npz", "zip"])
def test_damaged_bytes_of_archives(tmp_path, kind):
    rng, path, buffer = random.Random(len(kind)), tmp_path / "damaged.pth", io.BytesIO()
    if kind in ("pth", "old pth"):
        torch.save(
            {"a": torch.ones(500), "b": {"c": [torch.zeros(3)]}}, buffer, _use_new_zipfile_serialization=kind == "pth"
        )
    elif kind == "npz":
        np.savez(buffer, a=np.ones(50))
    else:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.pth", b"0" * 500)
    for _ in range(40):
        path.write_bytes(damaged(buffer.getvalue(), rng))
        verdict(path)
    if kind == "pth":  # the numbers begin behind their place in the archive's table
        content = bytearray(buffer.getvalue())
        content[content.index(struct.pack("<f", 1.0) * 9) + 20] ^= 1
        path.write_bytes(content)
        code, output = verdict(path)
        assert code == 1 and "has another checksum" in output
