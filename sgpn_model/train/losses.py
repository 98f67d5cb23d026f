"""The losses: reconstruction, perceptual, adversarial, 3D landmark and mesh (the paper's), and those that fit the shape."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from sgpn_arch.face3d.morphable_model import EYES
from sgpn_arch.face3d.shape_prior import Mesh
from sgpn_arch.ranges import Amount, Count
from sgpn_arch.registry import LOSS_REGISTRY
from sgpn_model.train.perceptual import MobileNetFeatures

# L1Loss, which L_rec uses, is BasicSR's.

POSE_AND_LIGHT = 3 + 27 + 3  # coefficients of angles, lighting and translation
# On iBUG-68 points: the outer corners of the two eyes, whose distance is the inter-ocular distance.
OUTER_EYE_CORNERS = (36, 45)
# The two eyes and the mouth: their points, and the side of a square window around them as a multiple of the larger extent.
COMPONENTS = (*((eye, 1.6) for eye in EYES), (slice(48, 68), 1.3))


@LOSS_REGISTRY.register()
class GridLoss(nn.Module):
    """What a picture repeats from square to square of ``period`` pixels, and its target does not (a choice of ours).

    A network that makes several pixels of each place, as SGPN with a ``patch``, can give them offsets of their own: a grid,
    of which L1 and features make little. Of the difference of both pictures, each phase of the period is averaged over
    windows, where texture averages out and a grid does not; the mean of all phases is taken away, and the absolute values
    are averaged.

    Args:
        loss_weight: factor. period: side of the square, in pixels. window: squares in a row of a window; windows overlap by
            half.
    """

    def __init__(self, loss_weight: Amount = 1.0, period: Count = 2, window: Count = 8):
        super().__init__()
        self.loss_weight, self.period, self.window = loss_weight, period, window

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, C, H, W) twice -> scalar. H and W are multiples of ``period``, and hold a window at least."""
        phases = F.pixel_unshuffle(pred - target, self.period)
        phases = F.avg_pool2d(phases, self.window, stride=max(1, self.window // 2)).unflatten(1, (-1, self.period**2))
        return self.loss_weight * (phases - phases.mean(dim=2, keepdim=True)).abs().mean()


@LOSS_REGISTRY.register()
class FacialComponentLoss(nn.Module):
    """Mean absolute difference of windows around the eyes and the mouth, and of the windows' averages over squares.

    These windows are about a seventh of the picture, and what a viewer looks at. The averages are for colour: over squares of
    half an iris, its pixels' detail, which cannot be known, weighs little. GFP-GAN cuts out the same parts for discriminators
    of their own (Wang et al. 2021, section 3.5); this loss on them is a choice of ours. It is 0 for photos without known
    landmarks.

    Args:
        loss_weight: factor. size: pixels of a window's side after it is resampled. square: side of the squares, in these pixels.

    Raises:
        ValueError: the size is no multiple of the square.
    """

    #: Further entries of a batch that ``forward`` takes by keyword.
    inputs: Sequence[str] = ("landmarks68",)

    def __init__(self, loss_weight: Amount = 1.0, size: Count = 64, square: Count = 8):
        super().__init__()
        if size % square:
            raise ValueError(f"size: is {size}, which is no multiple of square, {square}")
        self.loss_weight, self.size, self.square = loss_weight, size, square

    def forward(self, pred: Tensor, target: Tensor, landmarks68: Tensor) -> Tensor:
        """(N, C, H, W) twice, and landmarks (N, 68, 2) in OpenCV pixels -> scalar. Faces with unknown (NaN) ones do not count."""
        known = torch.isfinite(landmarks68).all(dim=(1, 2))
        if not known.any():
            return pred.sum() * 0
        pred, target, landmarks68 = pred[known], target[known], landmarks68[known].to(pred)
        windows = [torch.stack([_window(face[part], margin) for part, margin in COMPONENTS]) for face in landmarks68]
        parts, wanted = (roi_align(image, windows, self.size, aligned=True) for image in (pred, target))
        averaged = F.avg_pool2d(parts, self.square), F.avg_pool2d(wanted, self.square)
        return self.loss_weight * (F.l1_loss(parts, wanted) + F.l1_loss(*averaged))


def _window(points: Tensor, margin: float) -> Tensor:
    """Left, top, right and bottom (4,) of the square around points (K, 2), where a pixel's centre lies at 0.5."""
    least, most = points.amin(0) + 0.5, points.amax(0) + 0.5
    half = (most - least).max() * margin / 2
    return torch.cat([(least + most) / 2 - half, (least + most) / 2 + half])


@LOSS_REGISTRY.register()
class MobileNetPerceptualLoss(nn.Module):
    """Mean absolute difference of MobileNetV2's features, averaged over its four stages (a choice of ours).

    The paper names no perceptual network; the field uses VGG-19, whose weights are not free to ship.

    Args:
        loss_weight: factor. size: longest side that is compared; larger pictures are first averaged down to it.
    """

    def __init__(self, loss_weight: Amount = 1.0, size: Count = 512):
        super().__init__()
        self.loss_weight = loss_weight
        self.size = size
        self.features = MobileNetFeatures()

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> scalar."""
        if pred.shape[-1] > self.size:
            pred, target = (F.interpolate(image, size=self.size, mode="area") for image in (pred, target))
        with torch.no_grad():
            wanted = self.features(target)
        distances = [F.l1_loss(have, want) for have, want in zip(self.features(pred), wanted, strict=True)]
        return self.loss_weight * torch.stack(distances).mean()


def nonsaturating_loss(logits: Tensor, real: bool) -> Tensor:
    """Non-saturating logistic loss of a discriminator's logits: softplus(-logits) if they should say real."""
    return F.softplus(-logits if real else logits).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1: the mean over the batch of the squared gradient norm of real images' logits (Mescheder et al. 2018)."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, w: Tensor, directions: Tensor) -> Tensor:
    """How far pictures (N, 3, H, W) move with w (N, D): |J_w^T y| with y = directions / sqrt(H W), per picture (N,).

    Directions (N, 3, H, W) are drawn from N(0, 1). StyleGAN2's path length, but for the one w of all layers, where
    StyleGAN2 takes the root of the mean over layers. Differentiable once more.
    """
    product = (images * directions).sum() / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad(product, w, create_graph=True)
    return gradient.norm(dim=1)


def mesh_loss(mesh: Mesh, target: Mesh) -> Tensor:
    """L_mesh: mean distance of the vertices (decimetres) plus mean distance of their lit colours (0..1).

    The paper compares S with S_hq and C with C_hq over every vertex; the Euclidean norm and the mean are choices of ours.
    """
    geometry = (mesh.shape - target.shape).norm(dim=2).mean()
    colour = (mesh.colors - target.colors).norm(dim=2).mean()
    return geometry + colour


def pose_loss(coeffs: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of angles (radians), lighting and translation (decimetres), which coefficients (N, D) end with.

    L_mesh looks at the shape before the head's pose, so nothing else holds the pose in its place (a choice of ours).
    """
    return (coeffs - target)[:, -POSE_AND_LIGHT:].abs().mean()


def landmark_loss_3d(landmarks: Tensor, target: Tensor) -> Tensor:
    """L_3dlm: mean squared distance of the 68 3D landmarks (N, 68, 3), in square decimetres.

    The paper gives the weight (100) but not the norm. Squared, and taken before the head's pose, its gradient in the
    picture is a fifth of the perceptual loss's at that weight, measured on 24 degraded faces (a choice of ours).
    """
    return (landmarks - target).square().sum(dim=2).mean()


def landmark_loss_2d(points: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean distance in pixels of points (N, K, 2); weights (K,). Faces with unknown (NaN) targets do not count."""
    known = torch.isfinite(target).all(dim=(1, 2))
    if not known.any():
        return points.sum() * 0
    distance = (points[known] - target[known]).norm(dim=2)
    return (distance * weights).sum() / (weights.sum() * len(distance))


def landmark_error(points: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of 68 points (N, 68, 2) from the truth, in % of the distance of the outer eye corners: (N,)."""
    distance = (points - truth).norm(dim=2).mean(1)
    left, right = OUTER_EYE_CORNERS
    return 100 * distance / (truth[:, left] - truth[:, right]).norm(dim=1)


def photometric_loss(render: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Mean colour distance of the rendering and the photo (N, 3, H, W), both 0..1, where mask (N, 1, H, W) is set.

    The unsquared Euclidean norm per pixel forgives glasses and beards (Deep3DFaceRecon).
    """
    distance = (render - image).square().sum(dim=1, keepdim=True).add(1e-8).sqrt()
    return (distance * mask).sum() / mask.sum().clamp_min(1)


def coefficient_prior(identity: Tensor, expression: Tensor, texture: Tensor, lighting: Tensor) -> Tensor:
    """Keeps coefficients plausible: minus log of their Gaussian prior, and lighting that is nearly white.

    Weights of identity, expression and texture follow Deep3DFaceRecon's 1 : 0.8 : 0.017; the lighting term is the
    squared deviation of each channel from their mean.
    """
    parts = ((identity, 1.0), (expression, 0.8), (texture, 0.017))
    gaussian = sum(weight * values.square().sum(dim=1).mean() for values, weight in parts)
    gamma = lighting.unflatten(1, (3, 9))
    return 3e-4 * gaussian + (gamma - gamma.mean(dim=1, keepdim=True)).square().mean()
