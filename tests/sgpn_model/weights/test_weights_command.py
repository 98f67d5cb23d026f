"""``sgpn weights``: what it prints, its exit codes, and what it finds in whole, broken and malicious files."""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from oracles import released_fixtures
from oracles.web_server import Answer, WebServer
from sgpn_model import cli
from sgpn_model.weights import catalogue
from sgpn_model.weights.catalogue import Entry
from sgpn_model.weights.inspect import state_dicts


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs ``sgpn weights ...`` with an empty cache folder; returns exit code, output and errors."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SGPN_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def call(*arguments):
        code = cli.main(["weights", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def without_torch(*arguments):
    """Runs a command in a fresh interpreter, which must not import torch or requests for it."""
    code = (
        "import sys\nfrom sgpn_model.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n"
        "    assert not {'torch', 'cv2', 'requests', 'gdown'} & set(sys.modules), 'heavy imports'\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout


# ---------------------------------------------------------------------------------------------------------------------
# list, fetch, convert


def test_help_and_list_are_quick():
    assert "convert" in without_torch("weights", "--help")
    assert "retinaface" in without_torch("weights", "list")


def test_list_says_what_is_here(run, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "arcface_resnet18.pth").write_bytes(b"x" * 2000)
    code, out, _ = run("list")
    rows = {line.split("  ")[0]: line for line in out.splitlines() if line}
    assert code == 0 and f"Downloads go to {tmp_path / 'cache'}" in out
    assert "ships" in rows["sgpn_open"] and "Apache-2.0" in rows["sgpn_open"]
    assert "2.0 KB" in rows["arcface_resnet18"] and " yes " in rows["arcface_resnet18"]
    assert " no " in rows["retinaface"] and " known " in rows["retinaface"] and "109 MB" in rows["retinaface"]
    assert "no: by hand" in rows["bfm2009"]
    assert "not known" in rows["gpen_512"]


def test_fetch_says_where_and_what(run, monkeypatch, tmp_path):
    content = b"PK\x03\x04 weights"
    server = WebServer(content)
    digest = hashlib.sha256(content).hexdigest()
    words = ("thing", "a test", "CC0", "the-source", "its use", "thing.bin", server.url)
    entry = Entry(*words, sha256=digest, hash_from="here")
    monkeypatch.setattr(catalogue, "find_entry", lambda name: entry)
    code, out, _ = run("fetch", "thing", "-o", tmp_path / "here")
    assert code == 0 and f"{tmp_path / 'here' / 'thing.bin'}: 12 B, fetched" in out
    assert digest in out and "as in the catalogue" in out and "CC0" in out and "its use" in out
    assert "is there already" in run("fetch", "thing", "-o", tmp_path / "here")[1]
    server.plan = [Answer(status=404)]
    code, out, err = run("fetch", "thing", "-o", tmp_path / "there")
    assert code == 1 and not out and err.startswith("sgpn: error: ") and "answers 404" in err
    server.close()


def test_fetch_prints_the_hash_that_nobody_knew(run, monkeypatch, tmp_path):
    content = io.BytesIO()
    zipfile.ZipFile(content, "w").close()
    content = b"\x80\x02" + content.getvalue()
    server = WebServer(content)
    entry = Entry("thing", "a test", "CC0", "the-source", "its use", "thing.bin", server.url, home="torch")
    monkeypatch.setattr(catalogue, "find_entry", lambda name: entry)
    code, out, _ = run("fetch", "thing")
    assert code == 0 and hashlib.sha256(content).hexdigest() in out and "hash not known" in out
    assert f"torch looks for it in {tmp_path / 'torch' / 'hub' / 'checkpoints'}: copy it there" in out
    server.close()


def test_fetch_of_what_ships_of_what_is_asked_for_and_of_nothing(run):
    code, out, _ = run("fetch", "sgpn_open")
    assert code == 0 and "ships with this library" in out
    code, _, err = run("fetch", "bfm2009")
    assert code == 1 and "faces.dmi.unibas.ch" in err
    code, _, err = run("fetch", "vgg20")
    assert code == 1 and "did you mean 'vgg" in err


def test_convert_hands_over_its_arguments_and_prints_the_report(run, monkeypatch):
    import sgpn_model.weights.convert

    seen = {}
    monkeypatch.setattr(
        sgpn_model.weights.convert, "convert", lambda output, **more: seen.update(output=output, **more) or "report"
    )
    code, out, _ = run("convert", "--sgpn", "a.pth", "--d3dfr", "b.pth", "--bfm", "c", "-o", "d.safetensors")
    assert code == 0 and out == "report\n"
    assert seen == {"output": "d.safetensors", "sgpn": "a.pth", "d3dfr": "b.pth", "bfm": "c", "init_prior": None}


def test_convert_of_nothing_is_an_error_without_traceback(run, tmp_path):
    code, _, err = run("convert", "--sgpn", tmp_path / "none.pth", "-o", tmp_path / "out.safetensors")
    assert code == 1 and "none.pth" in err
    with pytest.raises(SystemExit) as caught:
        run("convert", "--sgpn", "a.pth")
    assert caught.value.code == 2


# ---------------------------------------------------------------------------------------------------------------------
# verify and show: whole files


@pytest.mark.parametrize(
    ("name", "entry"),
    [("default", "sgpn_open"), ("open_face", "open_face"), ("mobilenet_v2_features", "mobilenet_v2_features")],
)
def test_what_ships_is_whole(run, name, entry):
    """By the names that ``sgpn restore --weights`` knows."""
    code, out, _ = run("verify", name)
    assert code == 0 and f"it is '{entry}', which ships" in out and "nothing is wrong" in out
    assert ("it restores photos" in out) == (name == "default")


def test_what_was_fetched_has_a_name_too(run, tmp_path):
    (tmp_path / "cache").mkdir()
    torch.save({"w": torch.zeros(2)}, tmp_path / "cache" / "arcface_resnet18.pth")
    code, out, _ = run("verify", "arcface_resnet18")
    assert code == 0 and str(tmp_path / "cache" / "arcface_resnet18.pth") in out and "called like" in out


def test_show_of_the_default_weights(run):
    code, out, _ = run("show", "default")
    assert code == 0 and out == run("show", "sgpn_open")[1]
    for text in ("checkpoint of this library", "network_g: SGPN, 7.45 M", "size 512", "network_shape: D3DFR", "(F16"):
        assert text in out
    for text in (
        "open_face with learnt textures (in this file)",
        "template: ffhq",
        "protocol: open",
        "licence: Apache-2.0",
    ):
        assert text in out
    assert "step: " in out and "version: " in out


def test_a_checkpoint_with_its_own_morphable_model(run, tiny_weights):
    code, out, _ = run("verify", tiny_weights)
    assert code == 0 and "it restores photos" in out and "not in the catalogue" in out
    assert "(in this file)" in run("show", tiny_weights)[1]


def test_a_checkpoint_of_one_network_is_whole_but_no_restoration(run, tmp_path):
    from sgpn_arch import build_network
    from sgpn_model.weights.checkpoint import save_checkpoint

    opt = {
        "type": "SGPN",
        "size": 64,
        "width": 0.02,
        "max_channels": 8,
        "style_dim": 8,
        "latent_dim": 8,
        "coeff_dim": 4,
    }
    save_checkpoint(
        tmp_path / "g.safetensors", {"network_g": build_network(opt).state_dict()}, {"archs": {"network_g": opt}}
    )
    code, out, _ = run("verify", tmp_path / "g.safetensors")
    assert code == 0 and "not a whole restoration" in out
    assert "morphable model: none" in run("show", tmp_path / "g.safetensors")[1]


def test_the_open_morphable_model(run):
    code, out, _ = run("show", "open_face")
    assert code == 0 and "6,175 vertices, 12,078 triangles; modes: 80 identity, 52 expression, 40 texture" in out
    assert "licence: CC0-1.0" in out


def test_a_basel_face_model(run, tmp_path):
    released_fixtures.write_bfm(tmp_path)
    path = tmp_path / "BFM_model_front.mat"
    code, out, _ = run("verify", path)
    assert code == 0 and "400 vertices" in out and "called like 'bfm2009'" in out and "hash not known" in out
    assert "Basel Face Model" in run("show", path)[1]


@pytest.mark.parametrize("old", [False, True])
def test_released_weights(run, tmp_path, old):
    state = released_fixtures.sgpn_state()
    torch.save(state, tmp_path / "sgpn.pth", _use_new_zipfile_serialization=not old)
    code, out, _ = run("verify", tmp_path / "sgpn.pth")
    assert code == 0 and "the released SGPN" in out and "they all fit" in out and f"{len(state)} tensors" in out
    code, out, _ = run("show", tmp_path / "sgpn.pth")
    first = next(iter(state))
    assert code == 0 and "names as in the released SGPN" in out and f"{first} {tuple(state[first].shape)}" in out


def test_a_training_checkpoint_of_someone_else(run, tmp_path):
    content = {"epoch": 3, "params_ema": {"w": torch.zeros(2, 3)}, "optimizers": [{"state": {0: {"m": torch.ones(4)}}}]}
    torch.save(content, tmp_path / "net.pth")
    code, out, _ = run("show", tmp_path / "net.pth")
    assert (
        code == 0 and "params_ema: 1 tensors, 6 numbers" in out and "optimizers.0.state.0: 1 tensors, 4 numbers" in out
    )
    assert run("verify", tmp_path / "net.pth")[0] == 0


def test_an_archive_is_listed(run, tmp_path):
    with zipfile.ZipFile(tmp_path / "sgpn_released.zip", "w") as archive:
        archive.writestr("checkpoints/sgpn.pth", b"0" * 1500)
    code, out, _ = run("show", tmp_path / "sgpn_released.zip")
    assert code == 0 and "checkpoints/sgpn.pth: 1.5 KB" in out
    code, out, _ = run("verify", tmp_path / "sgpn_released.zip")
    assert code == 0 and "unpack it and verify the files in it" in out and "hash not known" in out


# ---------------------------------------------------------------------------------------------------------------------
# verify and show: files with something wrong


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def wrong(run, path, *messages):
    code, out, _ = run("verify", path)
    assert code == 1 and "WRONG: " in out and "something is wrong with it" in out
    for message in messages:
        assert message in out


def test_a_malicious_pickle_is_refused_and_does_not_run(run, tmp_path):
    torch.save({"w": torch.zeros(2), "x": Evil(tmp_path / "was-here")}, tmp_path / "evil.pth")
    wrong(run, tmp_path / "evil.pth", "refused", "mkdir")
    code, _, err = run("show", tmp_path / "evil.pth")
    assert code == 1 and "refused" in err
    assert not (tmp_path / "was-here").exists()


def test_containers_that_hold_each_other_are_listed_once():
    """A list of ten lists of ten lists ..., all of them the same: 10^19 ways to one tensor."""
    content = torch.zeros(2)
    for _ in range(19):
        content = [content] * 10
    assert [list(state) for _, state in state_dicts(content)] == [[str(n) for n in range(10)]]


def test_a_web_page_an_empty_and_an_unknown_file(run, tmp_path):
    for content, message in ((b"<html>Quota</html>", "web page"), (b"", "empty"), (b"no weights at all", "no format")):
        (tmp_path / "file.pth").write_bytes(content)
        wrong(run, tmp_path / "file.pth", message)


def test_a_file_under_a_name_of_the_catalogue_that_is_not_it(run, tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "vgg19-dcbb9e9d.pth")
    wrong(
        run, tmp_path / "vgg19-dcbb9e9d.pth", "called like 'vgg19' of the catalogue, but has", "should have 574,673,361"
    )


def rewrite(source, target, change):
    """Copies a checkpoint with changed tensors, behind save_checkpoint's back."""
    tensors = load_file(source)
    with open(source, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    metadata = header["__metadata__"]
    del metadata["sha256"]  # as files from before there were checksums
    change(tensors, metadata)
    save_file(tensors, target, metadata=metadata)
    return target


def first_of(tensors):
    return next(key for key in tensors if key.startswith("network_g.") and tensors[key].is_floating_point())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: tensors[first_of(tensors)].view(-1)[0].fill_(float("nan")), "NaN"),
        (lambda tensors, _: tensors.pop(first_of(tensors)), "is missing"),
        (lambda tensors, _: tensors.update({first_of(tensors): torch.zeros(5)}), "has shape (5,)"),
        (lambda tensors, _: tensors.update({"network_g.more": torch.zeros(5)}), "'more' is not part of SGPN"),
        (lambda _, metadata: metadata.update(metadata="{}"), "does not describe networks"),
        (lambda _, metadata: metadata.update(metadata=metadata["metadata"].replace('"SGPN"', '"SGPX"')), "SGPX"),
        (lambda _, metadata: metadata.update(metadata=metadata["metadata"].replace("ffhq", "ffhp")), "ffhp"),
    ],
    ids=["nan", "missing", "shape", "more", "metadata", "arch", "template"],
)
def test_a_damaged_checkpoint(run, tiny_weights, tmp_path, change, message):
    wrong(run, rewrite(tiny_weights, tmp_path / "bad.safetensors", change), message)


def test_a_cut_off_checkpoint_and_a_lying_header(run, tiny_weights, tmp_path):
    with open(tiny_weights, "rb") as file:
        whole = file.read()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    wrong(run, tmp_path / "cut.safetensors", "not a readable safetensors file")
    code, _, err = run("show", tmp_path / "cut.safetensors")
    assert code == 1 and "not a readable safetensors file" in err
    (tmp_path / "lie.safetensors").write_bytes(struct.pack("<Q", 1 << 20) + b"{" + whole[9:2000])
    wrong(run, tmp_path / "lie.safetensors", "not a readable safetensors file")


def test_released_weights_with_something_wrong(run, tmp_path):
    state = released_fixtures.sgpn_state()
    key = next(key for key in state if key.endswith("modulation.weight"))
    torch.save({**state, key: torch.full_like(state[key], np.nan)}, tmp_path / "nan.pth")
    wrong(run, tmp_path / "nan.pth", f"'{key}' holds NaN")
    state.pop(key)
    torch.save(state, tmp_path / "less.pth")
    wrong(run, tmp_path / "less.pth", "looks like the released SGPN, but")


def test_a_cut_off_archive(run, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sgpn.pth", b"0" * 1500)
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-10])
    wrong(run, tmp_path / "a.zip", "cut off")
    assert run("show", tmp_path / "a.zip")[0] == 1


def test_files_that_are_not_there(run, tmp_path):
    for task in ("verify", "show"):
        code, _, err = run(task, tmp_path / "none.pth")
        assert code == 1 and "no such file" in err
        code, _, err = run(task, "sgpn_opem")
        assert code == 1 and "did you mean 'sgpn_open'" in err
        code, _, err = run(task, "retinaface")
        assert code == 1 and "run: sgpn weights fetch retinaface" in err
        code, _, err = run(task, tmp_path)
        assert code == 1 and "is a folder" in err
