"""The catalogue: what ships with it, what a broken one is told, and how files are recognised."""

import gzip
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sgpn_model.weights import catalogue
from sgpn_model.weights.catalogue import CatalogueError, find_entry, find_file, load_catalogue, problem_of
from sgpn_model.weights.formats import damage_of, kind_of

ENTRY = """
thing:
  what: a test
  file: thing.pth
  url: http://localhost/thing.pth
  licence: CC0-1.0
  source: nowhere
  use: none
"""


@pytest.fixture
def entry_of(tmp_path):
    """Reads a catalogue of one entry with further lines, and returns the entry."""

    def read(*lines, without=()):
        text = "".join(line + "\n" for line in ENTRY.splitlines() if not line.strip().startswith(tuple(without)))
        path = tmp_path / "catalogue.yml"
        path.write_text(text + "".join(f"  {line}\n" for line in lines))
        return load_catalogue(path)["thing"]

    return read


# ---------------------------------------------------------------------------------------------------------------------
# The catalogue that ships


def test_every_entry_says_what_a_person_needs():
    for entry in load_catalogue().values():
        assert entry.what and entry.licence and entry.source and entry.use, entry.name
        assert (entry.sha256 is None and entry.size is None) or entry.hash_from, entry.name
        assert len(entry.what) <= 60, f"{entry.name}: the table needs a short text"


def test_it_names_what_the_library_can_use():
    names = set(load_catalogue())
    assert {"sgpn_open", "sgpn_released", "bfm2009", "retinaface", "vgg19", "lpips_vgg", "inception_fid"} <= names
    assert {"arcface_ir_se50", "gpen_512", "deep3d_epoch20", "open_face"} <= names


def test_shipped_entries_are_there_and_all_weights_that_ship_are_entries():
    shipped = {find_file(entry) for entry in load_catalogue().values() if entry.shipped}
    assert None not in shipped and len(shipped) == 3
    folder = catalogue.CATALOGUE_FILE.parent
    assert {path for path in shipped if path.parent == folder} == set(folder.glob("*.safetensors"))


def test_hash_prefixes_in_file_names_agree_with_the_hashes():
    told = {"vgg19": "dcbb9e9d", "vgg16": "397923af", "alexnet": "7be5be79", "inception_fid": "6726825d"}
    for name, digits in told.items():
        entry = find_entry(name)
        assert entry.sha256.startswith(digits) and digits in entry.file and entry.url.endswith(entry.file)


def test_the_basel_model_has_no_address_to_fetch():
    entry = find_entry("bfm2009")
    assert not entry.url and "faces.dmi.unibas.ch" in entry.by_hand


def test_what_ships_is_what_the_catalogue_says():
    for entry in load_catalogue().values():
        if entry.shipped:
            assert len(entry.sha256) == 64 and problem_of(find_file(entry), entry) is None


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(CatalogueError, match="did you mean 'retinaface'"):
        find_entry("retinafase")


# ---------------------------------------------------------------------------------------------------------------------
# Broken catalogues


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sha265: abc", "thing.sha265: Unexpected keyword"),
        ("sha256: abcdef", r"thing.sha256: String should match pattern '\^\[0-9a-f\]\{8,64\}\$'"),
        ("sha256: 12345678", "thing.sha256: Input should be a valid string"),
        (f"sha256: {'A' * 64}", "thing.sha256: String should match"),
        ("size: 12", "thing: .*needs hash_from"),
        ("size: twelve\n  hash_from: me", "thing.size: Input should be a valid integer"),
        ("size: 0\n  hash_from: me", "thing.size: Input should be greater than 0"),
        ("by_hand: ask", "thing: .*exactly one of"),
        ("home: attic", "thing.home: Input should be 'facexlib' or 'torch'"),
    ],
)
def test_a_wrong_entry_names_the_key(entry_of, line, message):
    with pytest.raises(CatalogueError, match=message):
        entry_of(line)


def test_an_incomplete_entry_and_a_bad_name_are_refused(entry_of):
    with pytest.raises(CatalogueError, match="thing.licence: Field required"):
        entry_of(without=["licence"])
    with pytest.raises(CatalogueError, match="thing.file: String should match pattern"):
        entry_of("file: ../thing.pth", without=["file"])
    with pytest.raises(CatalogueError, match="thing.url: String should match pattern"):
        entry_of("url: ftp://localhost/thing.pth", without=["url"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "a: 3"])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path, text):
    (tmp_path / "catalogue.yml").write_text(text)
    with pytest.raises(CatalogueError, match="catalogue.yml"):
        load_catalogue(tmp_path / "catalogue.yml")


# ---------------------------------------------------------------------------------------------------------------------
# Places


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path, entry_of):
    monkeypatch.setenv("SGPN_HOME", str(tmp_path / "home"))
    assert catalogue.cache_folder() == tmp_path / "home"
    entry = entry_of()
    assert find_file(entry) is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thing.pth").write_bytes(b"x")
    assert find_file(entry) == tmp_path / "home" / "thing.pth"
    monkeypatch.delenv("SGPN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert catalogue.cache_folder().name == "sgpn"


def test_a_file_in_the_folder_of_another_library_is_found(monkeypatch, tmp_path, entry_of):
    monkeypatch.setenv("SGPN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints" / "thing.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    assert find_file(entry_of("home: torch")) == place
    assert Path(torch.hub.get_dir()) / "checkpoints" == place.parent  # as torch sees it


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write_files(folder):
    torch.save({"a": torch.zeros(3)}, folder / "pytorch")
    torch.save({"a": torch.zeros(3)}, folder / "pickle", _use_new_zipfile_serialization=False)
    save_file({"a": np.zeros(3)}, folder / "safetensors")
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("a.txt", "a")
    (folder / "gzip").write_bytes(gzip.compress(b"a"))
    (folder / "html").write_bytes(b"\xef\xbb\xbf\n <!DOCTYPE html><title>Sign in</title>")
    (folder / "empty").write_bytes(b"")
    (folder / "unknown").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    return sorted(path.name for path in folder.iterdir())


def test_kinds_are_told_by_content(tmp_path):
    for name in write_files(tmp_path):
        assert kind_of(tmp_path / name) == name


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_looks_like_a_pickle_is_safetensors(tmp_path, length):
    save_file({"a": np.zeros(3)}, tmp_path / "file", {"fill": ""})
    missing = length - int.from_bytes((tmp_path / "file").read_bytes()[:8], "little")
    save_file({"a": np.zeros(3)}, tmp_path / "file", {"fill": "x" * missing})
    assert (tmp_path / "file").read_bytes().startswith(b"\x80" + bytes([length >> 8]))
    assert kind_of(tmp_path / "file") == "safetensors" and damage_of(tmp_path / "file") is None


def test_without_a_hash_the_format_decides(tmp_path, entry_of):
    write_files(tmp_path)
    entry = entry_of()
    for name in ("pytorch", "pickle", "safetensors", "zip", "gzip"):
        assert problem_of(tmp_path / name, entry) is None
    for name, message in (("html", "web page"), ("empty", "empty"), ("unknown", "no format")):
        assert message in problem_of(tmp_path / name, entry)
    for name in ("pytorch", "safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / "cut").write_bytes(whole[:-9])
        assert problem_of(tmp_path / "cut", entry), f"a {name} file without its end"


def test_a_hash_or_its_prefix_decides_where_it_is_known(tmp_path, entry_of):
    (tmp_path / "file").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    for length in (8, 20, 64):
        assert problem_of(tmp_path / "file", entry_of(f"sha256: '{digest[:length]}'", "hash_from: here")) is None
        wrong = digest[: length - 1] + ("0" if digest[length - 1] != "0" else "1")
        problem = problem_of(tmp_path / "file", entry_of(f"sha256: '{wrong}'", "hash_from: here"))
        assert digest in problem and wrong in problem
    assert "has 7 bytes, but should have 8" in problem_of(tmp_path / "file", entry_of("size: 8", "hash_from: here"))
