"""The release's cut-out and paste-back against OpenCV, step by step, on random photos and faces over their borders."""

import numpy as np
import pytest
from skimage.data import astronaut

from oracles import released_geometry as oracle
from sgpn_data.released_protocol import cut_out, paste_back

SIZE = 512


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def face_points(centre, scale, angle, jitter=0.0, seed=0):
    """Five points (5, 2) of a face, `scale` times the template's size and turned by `angle`, about a point of the photo."""
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turned = (oracle.TEMPLATE - 256) @ np.array([[cosine, sine], [-sine, cosine]])
    return turned + centre + np.random.default_rng(seed).normal(0, max(jitter, 1e-9), (5, 2)) * scale


# centre, scale, angle on a photo of 300 x 400: tilted, small, large, upside down, over borders and corners, outside
PLACES = {
    "upright": ((200, 150), 0.5, 0.0),
    "tilted": ((210, 140), 0.45, 0.5),
    "small": ((100, 200), 0.08, -0.3),
    "large": ((200, 150), 1.7, 0.2),
    "upside down": ((200, 150), 0.4, 3.0),
    "over the left border": ((10, 150), 0.5, -0.4),
    "over a corner": ((395, 295), 0.6, 0.3),
    "hardly inside": ((-90, 150), 0.5, 0.1),
    "far outside": ((-900, 150), 0.5, 0.1),
}


def differences(found, expected):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    return np.abs(found.astype(int) - expected.astype(int))


def assert_as_cut_by_the_release(photo, points):
    crop, matrix = cut_out(photo, points, SIZE, "gpen")
    expected, expected_matrix = oracle.cut_out(photo, points)
    corners = np.array([[0, 0, 1], [SIZE, 0, 1], [0, SIZE, 1], [SIZE, SIZE, 1]])
    back = [np.linalg.inv(np.vstack([m, [0, 0, 1]])) for m in (matrix, expected_matrix)]
    np.testing.assert_allclose(*((corners @ inverse.T)[:, :2] for inverse in back), atol=1e-3)
    apart = differences(crop, expected)
    # On noise a millionth of a pixel can turn a rounding, and no more.
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3
    return crop, matrix


def assert_as_pasted_by_the_release(photo, face, crop, matrix):
    before = photo.copy()
    found = paste_back(photo, face, crop, matrix)
    assert np.array_equal(photo, before)  # a new picture
    place = oracle.into_crop(photo, matrix)
    assert not differences(found, photo)[place < -1 / 16].any()  # not a pixel beside the crop
    sure = np.abs(place) > 1 / 16  # rounding decides on which side of the border the others fall
    assert differences(found, oracle.paste_back(photo, face, crop, matrix, truncate=False))[sure].max(initial=0) <= 1
    cut = differences(found, oracle.paste_back(photo, face, crop, matrix))[sure]
    # What the release cuts off is less than a level; the bicubic resampling of the photo can make up to two of it.
    assert cut.max(initial=0) <= 2 and cut.mean() < 1
    return found


def test_the_template_is_the_one_the_release_prints():
    rounded = [(202.04, 242.88), (309.43, 242.29), (256.08, 303.96), (211.96, 366.83), (300.89, 366.34)]
    np.testing.assert_allclose(oracle.TEMPLATE, rounded, atol=0.01)


def test_the_oracles_mask():
    mask = oracle.paste_mask()
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6
    assert (mask[:6] < 1e-3).all() and mask[60:-60, 60:-60].min() > 0.999
    np.testing.assert_allclose(mask, mask.T, atol=1e-6)
    row = mask[256]
    assert row[24] < 0.5 < row[28] and row[488] < 0.5 < row[484]
    np.testing.assert_allclose(
        row[26:487], row[486:25:-1], atol=1e-6
    )  # 26 and 486 mirror each other: the last is inside


@pytest.mark.parametrize("place", PLACES)
def test_cut_out_and_paste_back_are_the_releases(place):
    photo = noise(1, 300, 400)
    points = face_points(*PLACES[place], jitter=6.0, seed=2)
    crop, matrix = assert_as_cut_by_the_release(photo, points)
    result = assert_as_pasted_by_the_release(photo, noise(3, SIZE, SIZE), crop, matrix)
    if place == "far outside":
        assert not crop.any() and np.array_equal(result, photo)
    else:
        assert crop.any() and not np.array_equal(result, photo)


@pytest.mark.parametrize("seed", range(5))
def test_any_face_of_a_photo(seed):
    rng = np.random.default_rng(seed)
    photo = np.ascontiguousarray(astronaut()[:240, 100:420, ::-1])
    points = face_points(rng.uniform(-100, 400, 2), rng.uniform(0.1, 1.5), rng.uniform(-np.pi, np.pi), 8.0, seed)
    crop, matrix = assert_as_cut_by_the_release(photo, points)
    assert_as_pasted_by_the_release(photo, noise(seed, SIZE, SIZE), crop, matrix)


@pytest.mark.parametrize("first, second", [(0, 255), (255, 0), (90, 200)])
def test_even_pictures_are_blended_by_the_mask_and_nowhere_leave_their_range(first, second):
    photo, face = (np.full((600, 700, 3), value, np.uint8) for value in (first, second))
    points = face_points((350, 300), 0.7, 0.2)
    crop, matrix = assert_as_cut_by_the_release(photo, points)
    result = assert_as_pasted_by_the_release(photo, face[:SIZE, :SIZE], crop, matrix)
    assert result.min() >= min(first, second) and result.max() <= max(first, second)
    assert (result[300, 350] == second).all() and (result[0] == first).all()


def test_an_unchanged_face_leaves_the_photo_as_it_was():
    """At the template's own scale nothing is resampled, and the blend of a crop with itself is the crop."""
    photo = noise(5, 640, 640)
    points = oracle.TEMPLATE + [40, 60]
    crop, matrix = assert_as_cut_by_the_release(photo, points)
    assert differences(crop, photo[60:572, 40:552]).max() <= 1
    assert differences(paste_back(photo, crop, crop, matrix), photo).max() <= 1


def test_in_place_is_the_same_picture():
    photo = noise(8, 300, 400)
    crop, matrix = cut_out(photo, face_points(*PLACES["tilted"]), SIZE, "gpen")
    expected = paste_back(photo, noise(9, SIZE, SIZE), crop, matrix)
    assert paste_back(photo, noise(9, SIZE, SIZE), crop, matrix, in_place=True) is photo
    assert np.array_equal(photo, expected)


def test_faces_pasted_one_after_the_other():
    """Each is cut from the photo that the earlier ones are already on."""
    photo = expected = noise(7, 300, 400)
    sure = np.ones((300, 400), bool)
    for number, place in enumerate(("tilted", "over a corner", "small")):
        points, face = face_points(*PLACES[place]), noise(10 + number, SIZE, SIZE)
        crop, matrix = cut_out(photo, points, SIZE, "gpen")
        photo = paste_back(photo, face, crop, matrix)
        expected = oracle.paste_back(expected, face, *oracle.cut_out(expected, points), truncate=False)
        sure &= np.abs(oracle.into_crop(photo, matrix)) > 1 / 16
    apart = differences(photo, expected)[sure]
    assert apart.max() <= 2 and (apart > 1).mean() < 1e-3
