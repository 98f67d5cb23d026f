"""Checkpoints of plugins: they name the package that brings their networks, and say what to install where it is missing."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

FUSION = """
from sgpn_arch.fusion_arch import Fusion
from sgpn_arch.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class DoubledFusion(Fusion):
    uses_render = False

    def forward(self, hidden, features_lq, features_3d):
        return 2 * features_lq, None
"""
SGPN = {"type": "SGPN", "size": 64, "width": 0.02, "max_channels": 8, "style_dim": 8, "latent_dim": 8, "coeff_dim": 4}
SAVE = f"""
import sys
from sgpn_arch import build_network
from sgpn_model.weights.checkpoint import load_checkpoint, save_checkpoint
if sys.argv[2:]:
    __import__(sys.argv[2])
opt = {{**{SGPN!r}, "fusion": "DoubledFusion"}}
save_checkpoint(sys.argv[1], {{"network_g": build_network(opt).state_dict()}}, {{"archs": {{"network_g": opt}}}})
load_checkpoint(sys.argv[1]).network("network_g")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves a checkpoint in a process that has the plugin: as a package with an entry point, with a list of its files
    only, or as a mere file on the path. Returns the checkpoint's path."""

    @functools.cache
    def save(installed: str) -> Path:
        site = tmp_path_factory.mktemp("site")
        (site / "doubled_fusion.py").write_text(FUSION)
        if installed != "file":
            about = site / "sgpn_doubled-1.2.dist-info"
            about.mkdir()
            (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sgpn-doubled\nVersion: 1.2\n")
            if installed == "entry point":
                (about / "entry_points.txt").write_text("[sgpn.plugins]\ndoubled = doubled_fusion\n")
            else:
                (about / "RECORD").write_text("doubled_fusion.py,,\nsgpn_doubled-1.2.dist-info/METADATA,,\n")
        more = [] if installed == "entry point" else ["doubled_fusion"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
        if installed == "list of files":  # a package that is no plugin
            environment["SGPN_ALLOW_ARCHS"] = "DoubledFusion"
        path = site / "plugin.safetensors"
        subprocess.run([sys.executable, "-c", SAVE, str(path), *more], check=True, env=environment)
        return path

    return save


@pytest.mark.parametrize("installed", ["entry point", "list of files"])
def test_a_missing_package_is_named(saved, installed):
    checkpoint = load_checkpoint(saved(installed))
    assert checkpoint.metadata["packages"] == {"DoubledFusion": "sgpn-doubled==1.2"}
    told = r"plugin.safetensors: network_g: 'DoubledFusion' .* the package sgpn-doubled==1.2.*pip install sgpn-doubled==1.2"
    with pytest.raises(CheckpointError, match=told) as caught:
        checkpoint.network("network_g")
    assert "did you mean" not in str(caught.value)


def test_a_plugin_that_is_no_package_is_said_to_be_missing(saved):
    checkpoint = load_checkpoint(saved("file"))
    assert "packages" not in checkpoint.metadata
    with pytest.raises(CheckpointError, match="'DoubledFusion' .* a plugin is missing: .* or import its module before"):
        checkpoint.network("network_g")


def test_what_a_checkpoint_knows_is_kept_when_it_is_saved_without_the_plugin(saved, tmp_path):
    checkpoint = load_checkpoint(saved("entry point"))
    save_checkpoint(tmp_path / "again.safetensors", checkpoint.weights, checkpoint.metadata)
    assert (tmp_path / "again.safetensors").read_bytes() == checkpoint.path.read_bytes()


@pytest.mark.parametrize("place", ["type", "fusion"])
def test_an_old_checkpoint_of_a_plugin_says_that_one_is_missing(tmp_path, place):
    archs = {"network_g": {**SGPN, place: "ChannelSplitSTF"}}  # near ChannelSplitSFT, which does not help
    save_checkpoint(tmp_path / "old.safetensors", {"network_g": {"a": torch.zeros(1)}}, {"archs": archs})
    with pytest.raises(
        CheckpointError, match="'ChannelSplitSTF' .* a plugin is missing: install the package"
    ) as caught:
        load_checkpoint(tmp_path / "old.safetensors").network("network_g")
    assert "did you mean" not in str(caught.value)


def test_networks_of_this_library_name_no_package(tiny_weights):
    with safe_open(tiny_weights, "pt") as file:
        assert "packages" not in json.loads(file.metadata()["metadata"])


@pytest.mark.parametrize("maker", [["sgpn"], "evil; rm -rf ~", "--index-url=http://evil", None])
def test_what_a_file_claims_is_not_repeated_where_it_is_no_name_of_a_package(tmp_path, maker):
    metadata = {"archs": {"network_g": {"type": "Other"}}, "packages": {"Other": maker}}
    save_checkpoint(tmp_path / "odd.safetensors", {"network_g": {"a": torch.zeros(1)}}, metadata)
    with pytest.raises(CheckpointError, match="a plugin is missing") as caught:
        load_checkpoint(tmp_path / "odd.safetensors").network("network_g")
    assert "evil" not in str(caught.value)
