"""The prepared network computes what the network computes: every size, width, fusion, batch and precision."""

import gc
import math
import threading
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from oracles.synthetic_model import synthetic_model
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.fusion_arch import AFFB, Fusion, mask_pictures
from sgpn_arch.inference import strips, winograd
from sgpn_arch.inference.network import DeviceEngine, choose_precision
from sgpn_arch.registry import ARCH_REGISTRY
from sgpn_arch.sgpn_arch import SGPN

FP32_TOLERANCE, BF16_PSNR = 2e-4, 45.0
COEFFS = 9


class Swirl(Fusion):
    """A plugin's fusion: it looks at its neighbours, so that strips would not do."""

    def __init__(self, channels):
        super().__init__(channels)
        self.conv = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, hidden, features_lq, features_3d):
        mask = torch.sigmoid(self.conv(torch.cat([hidden, features_3d], 1)))
        return features_lq * mask, mask


@pytest.fixture(scope="module", autouse=True)
def plugin():
    ARCH_REGISTRY.register(Swirl)
    yield
    del ARCH_REGISTRY._obj_map["Swirl"]


def network(size=64, seed=0, **options) -> SGPN:
    """A network none of whose parts is silent: fresh weights leave out fusions and biases, which start at 0."""
    torch.manual_seed(seed)
    made = SGPN(**{"size": size, "width": 0.1, "max_channels": 24, "coeff_dim": COEFFS, "style_dim": 32, **options})
    for parameter in made.parameters():
        if parameter.ndim <= 1 or parameter.shape[0] == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return made.eval()


def faces(size=64, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lq, render = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return lq, render, torch.randn(batch, COEFFS, generator=generator)


def psnr(found, expected):
    """In dB of the expected picture's own range, since random networks do not keep to [-1, 1]."""
    span = (expected.max() - expected.min()).item()
    return 10 * math.log10(span**2 / max((found - expected).square().mean().item(), 1e-20))


def plain(net, inputs):
    with torch.inference_mode():
        return net(*inputs, return_masks=True)


@pytest.mark.parametrize("fusion", ["AFFB", "SumFusion", "LQOnly", "Swirl"])
@pytest.mark.parametrize("options", [{}, {"share_encoder": False}, {"max_channels": 80, "width": 0.03}, {"patch": 2}])
@pytest.mark.parametrize("batch", [1, 3])
def test_fp32_agrees(fusion, options, batch):
    net, inputs = network(fusion=fusion, **options), faces(batch=batch)
    image, masks = plain(net, inputs)
    found, found_masks = net.for_inference("fp32")(*inputs, return_masks=True)
    assert found.shape == image.shape and found.dtype == torch.float32
    assert (found - image).abs().max() <= FP32_TOLERANCE
    assert found_masks.keys() == masks.keys()
    for resolution, expected in masks.items():
        assert len(found_masks[resolution]) == len(expected)
        for a, b in zip(found_masks[resolution], expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fusion", ["AFFB", "SumFusion", "LQOnly", "Swirl"])
@pytest.mark.parametrize("batch", [1, 2])
def test_bf16_is_within_45_db(fusion, batch):
    net, inputs = network(fusion=fusion, width=0.2), faces(batch=batch)
    found = net.for_inference("bf16")(*inputs)
    assert found.dtype == torch.float32
    assert psnr(found, plain(net, inputs)[0]) >= BF16_PSNR


@pytest.mark.parametrize(("size", "width"), [(128, 0.125), (256, 0.05), (512, 0.03)])
def test_larger_pictures_agree(size, width):
    net, inputs = network(size, width=width), faces(size)
    image, _ = plain(net, inputs)
    assert (net.for_inference("fp32")(*inputs) - image).abs().max() <= FP32_TOLERANCE
    assert psnr(net.for_inference("bf16")(*inputs), image) >= BF16_PSNR


@pytest.mark.parametrize("about", [1, 5000, 1 << 30])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_height_of_the_strips_does_not_matter(monkeypatch, about, precision):
    net, inputs = network(128), faces(128)
    expected = net.for_inference(precision)(*inputs)
    for name in ("STRIP_BYTES", "WINOGRAD_STRIP_BYTES", "UPSAMPLING_STRIP_BYTES"):
        monkeypatch.setattr(strips, name, about)
    found = net.for_inference(precision)(*inputs)
    if precision == "fp32":
        assert (found - expected).abs().max() <= FP32_TOLERANCE
    else:
        assert psnr(found, expected) >= BF16_PSNR


def test_faces_do_not_touch_each_other():
    ready, inputs = network().for_inference("fp32"), faces(batch=3)
    together = ready(*inputs)
    for n in range(3):
        assert torch.equal(ready(*(x[n : n + 1] for x in inputs)), together[n : n + 1])


def test_a_second_call_leaves_the_first_result_alone():
    ready = network().for_inference("fp32")
    first, masks = ready(*faces(), return_masks=True)
    kept = first.clone(), masks[64][1].clone()
    ready(*faces(seed=2), return_masks=True)
    assert torch.equal(first, kept[0]) and torch.equal(masks[64][1], kept[1])


def test_several_threads_may_call_at_once():
    ready = network().for_inference("fp32")
    expected = [ready(*faces(seed=seed)) for seed in range(4)]
    found = [None] * 4

    def call(seed):
        found[seed] = ready(*faces(seed=seed))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_runs_under_autocast(precision):
    ready, inputs = network().for_inference(precision), faces()
    expected = ready(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ready(*inputs), expected)


def test_mask_picture_is_the_finest_scales():
    net, inputs = network(), faces(batch=2)
    image, picture = net.for_inference("fp32").with_mask_picture(*inputs)
    expected, masks = plain(net, inputs)
    assert (image - expected).abs().max() <= FP32_TOLERANCE
    torch.testing.assert_close(picture, mask_pictures(masks)[64], atol=1e-4, rtol=0)
    assert network(fusion="LQOnly").for_inference("fp32").with_mask_picture(*inputs)[1] is None


def test_it_keeps_the_weights_of_its_making():
    net, inputs = network(), faces()
    ready = net.for_inference("fp32")
    expected = ready(*inputs)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(ready(*inputs), expected)


@pytest.mark.parametrize("fusion", ["AFFB", "SumFusion", "LQOnly", "ChannelSplitSFT", "Swirl"])
def test_it_does_not_keep_the_network(fusion):
    """Nor any part of it: its weights would be in memory twice."""
    net = network(fusion=fusion, share_encoder=False)
    parts = [weakref.ref(part) for part in (*net.modules(), *net.parameters(), *net.buffers())]
    ready = net.for_inference("fp32")
    expected = ready(*faces())
    del net
    gc.collect()
    assert not [part for part in parts if part() is not None]
    assert torch.equal(ready(*faces()), expected)


def test_a_regressor_for_inference_does_not_keep_the_regressor():
    net = D3DFR(2, 3, 4, backbone="mobilenet_v2").eval()
    parts = [weakref.ref(part) for part in (*net.modules(), *net.parameters(), *net.buffers())]
    ready = ShapePrior(net, synthetic_model(1000, (2, 3, 4))).for_inference()
    del net
    gc.collect()
    assert not [part for part in parts if part() is not None]
    assert ready.regressor(torch.zeros(1, 3, 224, 224)).shape == (1, 42)


class TwiceAFFB(AFFB):
    """A plugin's fusion that takes AFFB's parts and does something else with them."""

    def forward(self, hidden, features_lq, features_3d):
        fused, mask = super().forward(hidden, features_lq, features_3d)
        return 2 * fused, mask


def test_a_subclass_with_another_forward_has_no_fast_form_of_its_base():
    net, inputs = network(), faces()
    for conv in net.decoder.convs:
        conv.fusion.__class__ = TwiceAFFB
    image, _ = plain(net, inputs)
    assert (image - plain(network(), inputs)[0]).abs().max() > 0.1
    assert (net.for_inference("fp32")(*inputs) - image).abs().max() <= FP32_TOLERANCE
    with pytest.raises(ValueError, match="TwiceAFFB does not say how it passes the photo"):
        net.decoder.convs[-1].fusion.pass_photo(6)


def test_results_need_no_gradients_and_the_network_still_trains():
    net, inputs = network(), faces()
    assert not net.for_inference("fp32")(*inputs).requires_grad
    net(*inputs).sum().backward()
    assert all(p.grad is not None for p in net.decoder.first_conv.parameters())


def test_wrong_input_is_refused_in_the_networks_words():
    ready, (lq, render, coeffs) = network().for_inference("fp32"), faces()
    with pytest.raises(ValueError, match="render is None"):
        ready(lq, None, coeffs)
    with pytest.raises(ValueError, match="coeffs has shape"):
        ready(lq, render, coeffs[:, 1:])
    with pytest.raises(ValueError, match="lq has shape"):
        ready(lq[..., 1:], render, coeffs)


def test_devices_without_graphs_run_the_network_itself():
    net, inputs = network(), faces(batch=2)
    image, masks = plain(net, inputs)
    found, found_masks = DeviceEngine(net, torch.float32)(*inputs, "all")
    torch.testing.assert_close(found, image, atol=FP32_TOLERANCE, rtol=0)
    assert found_masks.keys() == masks.keys()


def test_precision_names():
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == "fp32"
    assert choose_precision("auto", cpu) in ("fp32", "bf16")
    assert choose_precision("auto", torch.device("cuda")) == "fp16"
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(ValueError, match="needs CUDA"):
        network().for_inference("fp16")
    with pytest.raises(ValueError, match="'fp8' is unknown"):
        network().for_inference("fp8")


@pytest.mark.parametrize("filtering", [winograd.Rows, winograd.Tiles])
@pytest.mark.parametrize(
    ("height", "width", "in_channels", "out_channels"), [(4, 4, 1, 1), (8, 12, 5, 2), (12, 20, 16, 9)]
)
def test_winograd_is_the_convolution(filtering, height, width, in_channels, out_channels):
    torch.manual_seed(0)
    x = torch.randn(height + 2, width, in_channels, dtype=torch.float64)
    weight = torch.randn(out_channels, in_channels, 3, 3, dtype=torch.float64)
    out = torch.empty(height, width, out_channels, dtype=torch.float64)
    filtering(weight)(x, lambda name, *shape: torch.full(shape, torch.nan, dtype=torch.float64), out)
    expected = nn.functional.conv2d(x.permute(2, 0, 1)[None], weight, padding=(0, 1))[0].permute(1, 2, 0)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fusion", ["AFFB", "SumFusion", "LQOnly", "Swirl"])
@pytest.mark.parametrize(("precision", "at_least"), [("fp32", 70.0), ("bf16", BF16_PSNR), ("fp16", 55.0)])
def test_gpu_agrees_and_replays(fusion, precision, at_least):
    net = network(fusion=fusion)
    ready = deepcopy(net).cuda().for_inference(precision)
    for seed, batch in [(1, 2), (2, 2), (3, 1), (4, 5), (5, 3), (6, 4), (7, 2)]:
        inputs = faces(batch=batch, seed=seed)
        image, masks = plain(net, inputs)
        found, found_masks = ready(*(x.cuda() for x in inputs), return_masks=True)
        assert psnr(found.cpu(), image) >= at_least
        for resolution, pair in masks.items():
            for a, b in zip(found_masks[resolution], pair, strict=True):
                torch.testing.assert_close(a.float().cpu(), b, atol=0.02, rtol=0)
