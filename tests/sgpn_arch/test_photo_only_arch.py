"""PhotoOnly: BasicSR's own RRDBNet, and a network that is called as GFP-GAN's, in SGPN's place."""

import pytest
import torch
from torch import nn

from sgpn_arch import build_network, complete_options
from sgpn_arch.registry import ARCH_REGISTRY, load_basicsr
from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

# Real-ESRGAN's network at scale 1: it folds the photo to a quarter of its size, and unfolds it at the end.
RRDB = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 1, "num_feat": 8, "num_block": 1, "num_grow_ch": 4}
OPTIONS = {"type": "PhotoOnly", "network": RRDB, "size": 64, "span": "0..1"}


class FaceCleaner(nn.Module):
    """Called, and answering, as GFPGANv1 does."""

    def __init__(self, gain: float = 0.5):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x, return_latents=False, return_rgb=True, randomize_noise=True):
        if randomize_noise:
            raise AssertionError("the option file said otherwise")
        return self.gain * x, [x[..., ::2, ::2]] if return_rgb else []


@pytest.fixture(autouse=True)
def registered():
    load_basicsr()
    ARCH_REGISTRY.register(FaceCleaner)
    yield
    del ARCH_REGISTRY._obj_map["FaceCleaner"]


def photo(size=64):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_basicsrs_network_gets_its_own_colours():
    torch.manual_seed(0)
    network = build_network(OPTIONS).eval()
    assert type(network.network).__module__ == "basicsr.archs.rrdbnet_arch"
    with torch.no_grad():
        found, masks = network(photo(), None, torch.zeros(2, 5), return_masks=True)
        expected = network.network((photo() + 1) / 2) * 2 - 1
    torch.testing.assert_close(found, expected)
    assert masks == {}


def test_a_network_with_gfpgans_call():
    options = {"type": "PhotoOnly", "network": {"type": "FaceCleaner", "gain": 0.25}, "size": 64}
    network = build_network({**options, "call": {"return_rgb": False, "randomize_noise": False}})
    found = network(photo(), None, None)
    torch.testing.assert_close(found, 0.25 * photo())
    found.mean().backward()
    assert network.network.gain.grad != 0


def test_it_goes_through_a_checkpoint_if_the_user_allows_its_network(tmp_path, monkeypatch):
    network = build_network(OPTIONS).eval()
    metadata = {"archs": {"network_g": complete_options(OPTIONS)}}
    save_checkpoint(tmp_path / "a.safetensors", {"network_g": network.state_dict()}, metadata)
    with pytest.raises(CheckpointError, match=r"'RRDBNet' is a network of basicsr==.*set SGPN_ALLOW_ARCHS=RRDBNet"):
        load_checkpoint(tmp_path / "a.safetensors").network("network_g")
    monkeypatch.setenv("SGPN_ALLOW_ARCHS", "SwinIR,RRDBNet")
    again = load_checkpoint(tmp_path / "a.safetensors").network("network_g").eval()
    with torch.no_grad():
        assert torch.equal(again(photo(), None, None), network(photo(), None, None))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"RRDBNet takes no option 'num_blocks'; did you mean 'num_block'"):
        build_network({**OPTIONS, "network": {**RRDB, "num_blocks": 1}})
    with pytest.raises(ValueError, match=r"span is '0..255'; it may be -1..1 or 0..1"):
        build_network({**OPTIONS, "span": "0..255"})
    with pytest.raises(ValueError, match=r"RRDBNet makes \(2, 3, 256, 256\) of \(2, 3, 64, 64\)"):
        build_network({**OPTIONS, "network": {**RRDB, "scale": 4}})(photo(), None, None)
    with pytest.raises(ValueError, match="lq has shape"):
        build_network(OPTIONS)(photo(32), None, None)
