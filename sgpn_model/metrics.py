"""The metrics: fidelity (PSNR, SSIM), perceptual distance on MobileNetV2 features, and the landmark error."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_data.tensors import to_images
from sgpn_model.perceptual import MobileNetFeatures

# On iBUG-68 points: the outer corners of the two eyes, whose distance is the inter-ocular distance.
OUTER_EYE_CORNERS = (36, 45)


def landmark_error(points: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of 68 points (N, 68, 2) from the truth, in % of the distance of the outer eye corners: (N,)."""
    distance = (points - truth).norm(dim=2).mean(1)
    left, right = OUTER_EYE_CORNERS
    return 100 * distance / (truth[:, left] - truth[:, right]).norm(dim=1)


@METRIC_REGISTRY.register()
class psnr(nn.Module):
    """Peak signal-to-noise ratio in dB of 8-bit RGB pictures (scikit-image)."""

    higher_is_better = True

    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture."""
        from skimage.metrics import peak_signal_noise_ratio

        pairs = zip(to_images(pred), to_images(target), strict=True)
        return [float(peak_signal_noise_ratio(truth, image, data_range=255)) for image, truth in pairs]


@METRIC_REGISTRY.register()
class ssim(nn.Module):
    """Structural similarity of 8-bit RGB pictures, Gaussian window of sigma 1.5 (scikit-image, Wang et al. 2004)."""

    higher_is_better = True

    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture."""
        from skimage.metrics import structural_similarity

        settings = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        pairs = zip(to_images(pred), to_images(target), strict=True)
        return [float(structural_similarity(image, truth, data_range=255, **settings)) for image, truth in pairs]


@METRIC_REGISTRY.register()
class perceptual_mnv2(nn.Module):
    """Perceptual distance on MobileNetV2 features: LPIPS's form without its learnt weights. It is not LPIPS.

    Features are normalised to unit length along the channels; the squared distance is averaged over the picture and
    summed over the four stages.
    """

    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.features = MobileNetFeatures()

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture."""
        total = torch.zeros(len(pred), device=pred.device)
        for have, want in zip(self.features(pred.clamp(-1, 1)), self.features(target), strict=True):
            difference = F.normalize(have, dim=1, eps=1e-10) - F.normalize(want, dim=1, eps=1e-10)
            total += difference.square().sum(1).mean((1, 2))
        return total.tolist()
