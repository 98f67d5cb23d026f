"""The metrics of ``sgpn test``: fidelity, perceptual and set distances, NIQE, identity, landmarks and renderings.

A metric is found by its name in ``METRIC_REGISTRY``, so a plugin adds one by registering a class; :class:`Metric` says
what it must have. Weights are never downloaded here: a metric whose weights or package are not on this machine raises
:class:`MetricUnavailable`, which says which, and no other metric takes its name.
"""

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgpn_arch.errors import UserError
from sgpn_arch.face3d.morphable_model import EYES
from sgpn_arch.files import package_folder
from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_data.alignment import TEMPLATES, similarity_transform, warp
from sgpn_data.masks import hull_mask
from sgpn_data.tensors import to_images, to_tensor
from sgpn_model.train.perceptual import TAPS, MobileNetFeatures
from sgpn_model.weights.catalogue import CatalogueError, find_entry, find_file, problem_of

# NIQE looks at blocks of this many pixels, and needs their covariance: four blocks at least.
NIQE_BLOCK = 96
# ArcFace's pictures are 112 pixels wide. Its five points lie within GPEN's template, which is 28 px wider on each side.
ARCFACE_SIZE = 112
ARCFACE_POINTS = np.array(TEMPLATES["gpen"]) * (168 / 512) - 28
# Faces are shown to dlib at this size, which its distances in pixels are about.
DLIB_SIZE = 512


class MetricUnavailable(UserError):
    """A metric whose weights or package are not on this machine; the message names them and how to get them."""


class Metric(nn.Module):
    """What a metric is. A registered class need not derive from it: it needs ``higher_is_better`` and ``forward``.

    ``forward(pred, target)`` takes pictures (N, 3, H, W), RGB in [-1, 1], and returns one value per picture; NaN stands
    for "cannot be said". A :class:`SetMetric` compares sets of pictures instead. The other attributes have defaults.
    """

    #: Which way is better.
    higher_is_better: bool
    #: Whether it compares with the truth. If not, it is called with ``pred`` alone, for the truth too.
    needs_reference = True
    #: What the values are measured in, for headings.
    unit = ""
    #: The smallest side of pictures that it can judge, in pixels.
    min_size = 1
    #: Further entries of a dataset's items that ``forward`` takes by keyword, such as "points5".
    inputs: Sequence[str] = ()

    def caution(self, faces: int) -> str | None:
        """What a reader of a table over so many faces should know, or None."""
        return None


class SetMetric(Metric):
    """A distance of two sets of pictures: features of every picture first, then one number of both sets' features."""

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [-1, 1] -> (N, D)."""
        raise TypeError(f"{type(self).__name__} does not say what its features are")

    def distance(self, pred: Tensor, target: Tensor) -> float:
        """Features (M, D) and (N, D) of two sets -> the number."""
        raise TypeError(f"{type(self).__name__} does not say how sets compare")


# ---------------------------------------------------------------------------------------------------------------------
# Weights and packages


def weights_file(name: str, metric: str) -> Path:
    """The verified file of weights of the catalogue that a metric needs.

    Raises:
        MetricUnavailable: it is not on this machine. CatalogueError: it is there, but is not what it should be.
    """
    entry = find_entry(name)
    path = find_file(entry)
    if path is None:
        raise MetricUnavailable(
            f"{metric} needs the weights '{name}' ({entry.file}), which are not on this machine: "
            f"get them with `sgpn weights fetch {name}`"
        )
    problem = problem_of(path, entry)
    if problem:
        raise CatalogueError(f"{metric}: {path} {problem}: remove it, then `sgpn weights fetch {name}`")
    return path


def package(name: str, metric: str) -> ModuleType:
    """A module of an optional package.

    Raises:
        MetricUnavailable: it cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # BasicSR's imports
            return importlib.import_module(name)
    except ImportError as error:
        raise MetricUnavailable(
            f'{metric} needs the package {name.partition(".")[0]} (pip install "sgpn[metrics]"): {error}'
        ) from error


def _load(network: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CatalogueError(f"{path}: does not hold the weights of a {type(network).__name__}: {error}") from error
    return network.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# Fidelity


@METRIC_REGISTRY.register()
class psnr(Metric):
    """Peak signal-to-noise ratio in dB of 8-bit RGB pictures (scikit-image)."""

    higher_is_better = True
    unit = "dB"

    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture; infinite for equal pictures."""
        from skimage.metrics import peak_signal_noise_ratio

        pairs = zip(to_images(pred), to_images(target), strict=True)
        with np.errstate(divide="ignore"):
            return [float(peak_signal_noise_ratio(truth, image, data_range=255)) for image, truth in pairs]


@METRIC_REGISTRY.register()
class ssim(Metric):
    """Structural similarity of 8-bit RGB pictures, Gaussian window of sigma 1.5 (scikit-image, Wang et al. 2004)."""

    higher_is_better = True
    min_size = 11

    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture."""
        from skimage.metrics import structural_similarity

        settings = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        pairs = zip(to_images(pred), to_images(target), strict=True)
        return [float(structural_similarity(image, truth, data_range=255, **settings)) for image, truth in pairs]


# ---------------------------------------------------------------------------------------------------------------------
# Perceptual distances


@METRIC_REGISTRY.register()
class perceptual_mnv2(Metric):
    """Perceptual distance on MobileNetV2 features: LPIPS's form without its learnt weights. It is not LPIPS.

    Features are normalised to unit length along the channels; the squared distance is averaged over the picture and
    summed over the four stages.
    """

    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.network = MobileNetFeatures()

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture."""
        total = torch.zeros(len(pred), device=pred.device)
        for have, want in zip(self.network(pred.clamp(-1, 1)), self.network(target), strict=True):
            difference = F.normalize(have, dim=1, eps=1e-10) - F.normalize(want, dim=1, eps=1e-10)
            total += difference.square().sum(1).mean((1, 2))
        return total.tolist()


class _Lpips(Metric):
    """LPIPS 0.1 (Zhang et al. 2018) by the authors' package, on the backbone that a subclass names."""

    higher_is_better = False
    min_size = 32
    NET: str
    BACKBONE: str

    def __init__(self):
        super().__init__()
        name = type(self).__name__
        lpips = package("lpips", name)
        path = weights_file(self.BACKBONE, name)
        linear = find_file(find_entry(f"lpips_{self.NET}"))  # else the package's own, which is the same file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package asks torchvision for networks in the way of old
            # pnet_rand: else the package would download the backbone.
            network = lpips.LPIPS(
                net=self.NET, pnet_rand=True, model_path=str(linear) if linear else None, verbose=False
            )
        self.network = network.eval().requires_grad_(False)
        _load(network.net, _backbone_state(network.net, path), path)

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1] -> one value per picture."""
        return self.network(pred.clamp(-1, 1), target).flatten().tolist()


def _backbone_state(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """torchvision's weights ``features.N.weight`` under the names that lpips gives them, ``sliceK.N.weight``."""
    given = torch.load(path, map_location="cpu", weights_only=True)
    names = {key: f"features.{key.partition('.')[2]}" for key in network.state_dict()}
    return {key: given[name] for key, name in names.items() if name in given}


@METRIC_REGISTRY.register()
class lpips_vgg(_Lpips):
    """LPIPS on VGG-16: the one that papers on restoration mostly report. Weights: ``vgg16``."""

    NET, BACKBONE = "vgg", "vgg16"


@METRIC_REGISTRY.register()
class lpips_alex(_Lpips):
    """LPIPS on AlexNet: the package's default. Weights: ``alexnet``."""

    NET, BACKBONE = "alex", "alexnet"


# ---------------------------------------------------------------------------------------------------------------------
# Distances of sets


def frechet_distance(pred: Tensor, target: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features (M, D) and (N, D): Heusel et al. 2017's formula, in float64.

    ``|m_p - m_t|^2 + tr(C_p + C_t - 2 (C_p C_t)^(1/2))`` with covariances divided by M - 1 and N - 1. With centred and
    scaled features A and B, ``C_p = A^T A`` and ``C_t = B^T B``, so the eigenvalues of ``C_p C_t`` are the squared singular
    values of ``A B^T``, and the trace of the root is their plain sum: no root of a matrix is taken, and singular covariances
    do no harm. NaN for fewer than two pictures.
    """
    if min(len(pred), len(target)) < 2:
        return float("nan")
    factors = []
    for features in (pred, target):
        centred = features.double() - features.double().mean(0)
        factors.append(torch.linalg.qr(centred / (len(features) - 1) ** 0.5, mode="r").R)  # A = Q R: R does as well
    cross = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    means = (pred.double().mean(0) - target.double().mean(0)).square().sum()
    return max(0.0, (means + factors[0].square().sum() + factors[1].square().sum() - 2 * cross).item())


@METRIC_REGISTRY.register()
class fid(SetMetric):
    """Frechet inception distance (Heusel et al. 2017) between the restored faces and the true ones.

    Features are the 2048 numbers of the original FID's Inception, by torch-fidelity, of 8-bit pictures. Weights:
    ``inception_fid``.
    """

    higher_is_better = False
    DIMENSION = 2048

    def __init__(self):
        super().__init__()
        module = package("torch_fidelity.feature_extractor_inceptionv3", "fid")
        path = weights_file("inception_fid", "fid")
        self.network = module.FeatureExtractorInceptionV3("inception-v3-compat", [str(self.DIMENSION)], str(path))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [-1, 1] -> (N, 2048)."""
        return self.network(((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))[0]

    distance = staticmethod(frechet_distance)

    def caution(self, faces: int) -> str | None:
        """FID is known for its bias with few pictures."""
        if faces > self.DIMENSION:
            return None
        return (
            f"fid: {faces} faces for {self.DIMENSION} features: the covariances are singular and the value is far too "
            "high; compare it with values over the same faces only, never with published ones"
        )


@METRIC_REGISTRY.register()
class frechet_mnv2(SetMetric):
    """FID's formula on MobileNetV2 features: 32 channels at 1/8 of the size, averaged over the picture. It is not FID.

    So few features because test sets of faces are small: a covariance needs more faces than features to be regular, and
    the distance is biased upwards by about what two halves of the true faces are apart. On 88 faces of 256 px it fell
    by a tenth as their number rose from 22 to 88, and two halves were apart by a ninth of what the gfpgan preset does.
    """

    higher_is_better = False
    STAGE = 2  # of MobileNetFeatures
    DIMENSION = 32

    def __init__(self):
        super().__init__()
        self.network = MobileNetFeatures()
        self.network.stages = self.network.stages[: TAPS[self.STAGE] + 1]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [-1, 1] -> (N, 32)."""
        return self.network(images.clamp(-1, 1))[self.STAGE].mean((2, 3))

    distance = staticmethod(frechet_distance)

    def caution(self, faces: int) -> str | None:
        """A covariance of fewer faces than features is singular."""
        if faces > self.DIMENSION:
            return None
        return f"frechet_mnv2: {faces} faces for {self.DIMENSION} features are too few: the value is much too high"


# ---------------------------------------------------------------------------------------------------------------------
# Without a reference


@METRIC_REGISTRY.register()
class niqe(Metric):
    """NIQE (Mittal et al. 2013) by BasicSR, with the parameters of the original that ship with it.

    On the luma of the whole face crop, in blocks of 96 px; what is left over at the right and below is not looked at. At
    256 px these are four blocks only, so values of single faces are noisy; papers report it at 512 px.
    """

    higher_is_better = False
    needs_reference = False
    min_size = 2 * NIQE_BLOCK

    def __init__(self):
        super().__init__()
        self.function = package("basicsr.metrics.niqe", "niqe").calculate_niqe

    def forward(self, pred: Tensor) -> list[float]:
        """(N, 3, H, W) RGB in [-1, 1] -> one value per picture; NaN for a picture without texture."""
        return [self._value(image) for image in to_images(pred)]

    def _value(self, image: np.ndarray) -> float:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                return float(self.function(image, crop_border=0))
            except (ValueError, np.linalg.LinAlgError):  # no two blocks have any texture
                return float("nan")


# ---------------------------------------------------------------------------------------------------------------------
# Identity


@METRIC_REGISTRY.register()
class identity_ir_se50(Metric):
    """Cosine of the ArcFace embeddings (IR-SE50, by facexlib) of the restored and the true face, in -1..1.

    Both are aligned to ArcFace's 112x112 px by the true face's five points. The network was trained on pictures in BGR
    order, by the code that its authors published, and gets them so; others feed it RGB. Weights: ``arcface_ir_se50``.
    """

    higher_is_better = True
    inputs = ("points5",)

    def __init__(self):
        super().__init__()
        module = package("facexlib.recognition.arcface_arch", "identity_ir_se50")
        path = weights_file("arcface_ir_se50", "identity_ir_se50")
        network = module.Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
        self.network = _load(network, torch.load(path, map_location="cpu", weights_only=True), path)

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor, points5: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1], and points (N, 5, 2) in OpenCV pixels -> one value per picture."""
        one, other = (self.network(arcface_crops(images, points5)) for images in (pred, target))
        return F.cosine_similarity(one, other).tolist()


def arcface_crops(images: Tensor, points5: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in RGB and five points (N, 5, 2) -> (N, 3, 112, 112) in BGR, [-1, 1], 8-bit levels."""
    matrices = [similarity_transform(points.cpu().numpy(), ARCFACE_POINTS) for points in points5]
    crops = [
        warp(image, matrix, (ARCFACE_SIZE, ARCFACE_SIZE), "constant")
        for image, matrix in zip(to_images(images), matrices, strict=True)
    ]
    return torch.stack([to_tensor(crop) for crop in crops]).flip(1).to(images.device)


# ---------------------------------------------------------------------------------------------------------------------
# By dlib, independent of everything trained here


class _Dlib(Metric):
    """A metric on dlib's models, which the package face_recognition_models carries: nothing is downloaded here.

    Both packages are installed by hand (``pip install dlib face_recognition_models``). The landmark model was
    trained on 300-W, whose licence forbids commercial use; it only measures here.
    """

    inputs = ("landmarks68",)

    def __init__(self):
        super().__init__()
        name = type(self).__name__
        self.dlib = package("dlib", name)
        try:
            found = package_folder("face_recognition_models")
        except ValueError:
            found = None
        if found is None:
            raise MetricUnavailable(f"{name} needs the package face_recognition_models, which carries dlib's models")
        self.folder = found / "models"

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor, landmarks68: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1], and the true landmarks (N, 68, 2) -> one value per picture; NaN without them."""
        pairs = zip(_large_rgb(pred), _large_rgb(target), landmarks68.cpu().numpy(), strict=True)
        scale = DLIB_SIZE / pred.shape[-1]
        return [self._value(one, other, (points + 0.5) * scale - 0.5) for one, other, points in pairs]

    def _value(self, image: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
        if not np.isfinite(points).all():
            return float("nan")
        return self.compare(image, truth, points)

    def compare(self, image: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
        """What a subclass measures of two pictures (D, D, 3) uint8 RGB whose true landmarks are at points (68, 2)."""
        raise NotImplementedError

    def box(self, points: np.ndarray):
        """A dlib rectangle around landmarks (68, 2)."""
        (left, top), (right, bottom) = (np.rint(limit).astype(int).tolist() for limit in (points.min(0), points.max(0)))
        return self.dlib.rectangle(left, top, right, bottom)


def _large_rgb(images: Tensor) -> list[np.ndarray]:
    if images.shape[-1] != DLIB_SIZE:
        images = F.interpolate(images, size=(DLIB_SIZE, DLIB_SIZE), mode="bicubic", align_corners=False)
    return [np.ascontiguousarray(image[:, :, ::-1]) for image in to_images(images.clamp(-1, 1))]


@METRIC_REGISTRY.register()
class landmark_dlib(_Dlib):
    """Mean distance in pixels of a 512 px face between dlib's 68 landmarks of the restored and of the true picture."""

    higher_is_better = False
    unit = "px of 512"

    def __init__(self):
        super().__init__()
        self.predictor = self.dlib.shape_predictor(str(self.folder / "shape_predictor_68_face_landmarks.dat"))

    def compare(self, image: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
        """uint8 RGB (512, 512, 3) twice, true landmarks (68, 2) -> pixels."""
        box = self.box(points)
        found, wanted = (
            np.array([(part.x, part.y) for part in self.predictor(picture, box).parts()]) for picture in (image, truth)
        )
        return float(np.linalg.norm(found - wanted, axis=1).mean())


@METRIC_REGISTRY.register()
class identity_dlib(_Dlib):
    """Euclidean distance of dlib's 128 numbers of the restored and of the true face; below 0.6 dlib calls two faces one person's.

    Both are cut out by the true landmarks.
    """

    higher_is_better = False

    def __init__(self):
        super().__init__()
        path = self.folder / "dlib_face_recognition_resnet_model_v1.dat"
        self.network = self.dlib.face_recognition_model_v1(str(path))

    def compare(self, image: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
        """uint8 RGB (512, 512, 3) twice, true landmarks (68, 2) -> distance."""
        parts = self.dlib.points([self.dlib.point(*map(int, np.rint(point))) for point in points])
        face = self.dlib.full_object_detection(self.box(points), parts)
        one, other = (np.array(self.network.compute_face_descriptor(picture, face)) for picture in (image, truth))
        return float(np.linalg.norm(one - other))


# ---------------------------------------------------------------------------------------------------------------------
# Eyes


@METRIC_REGISTRY.register()
class eye_colour(Metric):
    """Colour difference (CIEDE2000) of the irises of the restored and the true face, averaged over both eyes.

    An iris is the darker half of what the eye's six points enclose in the true picture, wherever the eye looks; pupil and
    lashes are in it, too. An eye as light all over counts whole. The mean CIELAB colours of these pixels are compared: a
    difference of 1 can just be seen. (A choice of ours.)
    """

    higher_is_better = False
    inputs = ("landmarks68",)

    def forward(self, pred: Tensor, target: Tensor, landmarks68: Tensor) -> list[float]:
        """(N, 3, H, W) twice, RGB in [-1, 1], and the true landmarks (N, 68, 2) -> one value per picture; NaN without them."""
        triples = zip(to_images(pred), to_images(target), landmarks68.cpu().numpy(), strict=True)
        return [self._value(*triple) for triple in triples]

    def _value(self, image: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
        if not np.isfinite(points).all():
            return float("nan")
        from skimage.color import deltaE_ciede2000, rgb2lab

        differences = []
        for eye in EYES:
            inside = hull_mask(points[eye], truth.shape[:2]) > 0
            if inside.any():
                one, other = (rgb2lab(picture[inside][:, ::-1]) for picture in (image, truth))
                iris = other[:, 0] <= np.median(other[:, 0])
                differences.append(deltaE_ciede2000(one[iris].mean(axis=0), other[iris].mean(axis=0)))
        return float(np.mean(differences)) if differences else float("nan")


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def rendering_error(render: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference of a rendering from the photo of the face, where the mesh is, in grey levels of 255.

    Args:
        render, truth: uint8 (S, S, 3). mask: uint8 (S, S), 255 where the mesh covers a pixel; its blurred edge does not
            count. NaN where the mesh is nowhere in the picture.
    """
    inside = mask == 255
    return float(np.abs(render[inside].astype(float) - truth[inside]).mean()) if inside.any() else float("nan")
