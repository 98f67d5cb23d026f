"""Brush masks: the seed decides, the area is the drawn one, strokes hang together, every size shows the same picture."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oracles import masks as oracle
from sgpn_arch.errors import OptionError
from sgpn_data import masks


def generator(seed):
    return np.random.default_rng(seed)


class TestMasks:
    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 2**31), st.sampled_from([48, 64, 100]), st.floats(0, 1))
    def test_white_is_hole_and_the_seed_decides(self, seed, size, probability):
        draw = masks.BrushMasks(shape_probability=probability)
        mask = draw(size, generator(seed))
        assert mask.shape == (size, size) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(mask, draw(size, generator(seed)))
        assert (mask != draw(size, generator(seed + 1))).any()

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 2**31), st.floats(0.01, 0.6), st.floats(0, 0.3), st.sampled_from([32, 64, 130]))
    def test_the_area_lies_in_its_range(self, seed, low, width, size):
        mask = masks.BrushMasks(area=(low, low + width), shape_probability=0.3)(size, generator(seed))
        pixel = 1 / size**2
        assert low - pixel <= (mask > 0).mean() <= low + width + pixel

    def test_areas_fill_their_range(self):
        draw = masks.BrushMasks(area=(0.05, 0.35))
        areas = [(draw(32, generator(seed)) > 0).mean() for seed in range(150)]
        assert min(areas) < 0.07 and max(areas) > 0.33 and np.mean(areas) == pytest.approx(0.2, abs=0.025)

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 2**31), st.integers(1, 5))
    def test_a_stroke_hangs_together(self, seed, strokes):
        mask = masks.BrushMasks(strokes=strokes)(96, generator(seed))
        assert 1 <= oracle.parts(mask) <= strokes

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 2**31), st.sampled_from([32, 64, 256]), st.floats(0, 1))
    # A gap narrower than a small pixel: half open in the large mask, filled in the small one.
    @example(5062412, 32, 0.0)
    def test_every_size_shows_the_same_mask(self, seed, size, probability):
        """Brushes grow with the picture: a large mask, shrunk, is the small one up to the pixels along their edges."""
        draw = masks.BrushMasks(shape_probability=probability)
        large, small = draw(512, generator(seed)), draw(size, generator(seed))
        shrunk = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA) / 255
        edge = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        edge |= (shrunk > 0) & (shrunk < 1)
        assert (shrunk == small / 255)[~edge].all()
        assert np.abs(shrunk - small / 255).mean() < 6 / size

    def test_width_and_direction_vary_along_a_stroke(self):
        """The half widths of one long stroke, from its distance transform's ridge, and the directions of its pieces."""
        mask = masks.BrushMasks(strokes=1, area=0.2, width=(0.03, 0.15), turn=1.0)(256, generator(3))
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
        ridge = distance[(distance == cv2.dilate(distance, np.ones((5, 5)))) & (distance > 0)] / 256
        assert ridge.min() < 0.03 and ridge.max() > 0.05
        rows, columns = (mask > 0).any(axis=1).sum(), (mask > 0).any(axis=0).sum()
        assert min(rows, columns) > 60, "a straight stroke along an axis would be thin one way"

    def test_strokes_stay_in_the_picture(self):
        """Also long ones: no mask is mere border, and its middle is hit as often as anything."""
        draw = masks.BrushMasks(length=(0.3, 0.9))
        mean = np.mean([draw(64, generator(seed)) > 0 for seed in range(300)], axis=0)
        assert 0.5 < mean[16:48, 16:48].mean() / mean.mean() < 2


class TestPieces:
    def test_a_brush_is_a_line_of_circles(self):
        """Each place's distance from the nearest point of the line, over the radius there, by trying points."""
        line = (0.2, 0.3), (0.7, 0.6), 0.05, 0.1
        found = masks.stroke_distance(*line)[3::16, 3::16]
        wanted = oracle.brush_distance(masks.GRID, *line, steps=400)[3::16, 3::16]
        np.testing.assert_allclose(found, wanted, rtol=2e-3)

    def test_a_stroke_without_length_is_a_circle(self):
        distance = masks.stroke_distance((0.5, 0.5), (0.5, 0.5), 0.1, 0.1)
        assert masks.painted_area(distance) == pytest.approx(np.pi * 0.1**2, rel=0.03)

    def test_shapes_have_their_area_and_turn(self):
        ellipse = masks.ellipse_distance((0.5, 0.5), 0.3, 0.1, 0.0)
        rectangle = masks.rectangle_distance((0.5, 0.5), 0.3, 0.1, 0.0)
        assert masks.painted_area(ellipse) == pytest.approx(np.pi * 0.03, rel=0.02)
        assert masks.painted_area(rectangle) == pytest.approx(0.12, rel=0.02)
        turned = masks.rectangle_distance((0.5, 0.5), 0.3, 0.1, np.pi / 2)
        np.testing.assert_allclose(turned, rectangle.T, atol=1e-4)

    def test_drawing_takes_the_nearest_places(self):
        x = np.tile((np.arange(masks.GRID, dtype=np.float32) + 0.5) / masks.GRID, (masks.GRID, 1))
        mask = masks.draw(x, 64, 0.25)
        assert (mask[:, :16] == 255).all() and (mask[:, 16:] == 0).all()
        assert not masks.draw(x, 64, 0.0).any() and masks.draw(x, 64, 1.0).all()


def test_a_hull_covers_what_lies_between_its_points():
    corners = np.array([[2.4, 1.0], [6.0, 1.0], [2.0, 5.0], [4.0, 2.0]])  # the last lies inside
    y, x = np.mgrid[:8, :10]
    wanted = (x >= 2) & (y >= 1) & ((x - 2) + (y - 1) <= 4)
    np.testing.assert_array_equal(masks.hull_mask(corners, (8, 10)), wanted.astype(np.float32))
    assert not masks.hull_mask(corners + 50, (8, 10)).any()


class TestOptions:
    @pytest.mark.parametrize(
        "key, value",
        [
            ("area", (0, 0.3)),
            ("area", 1.5),
            ("strokes", 0),
            ("strokes", (1, 2.5)),
            ("width", 0),
            ("length", "long"),
            ("turn", -1),
            ("shape_probability", 2),
        ],
    )
    def test_bad_values_name_their_key(self, key, value):
        with pytest.raises(ValueError, match=f"inpaint.{key}: "):
            masks.BrushMasks(**{key: value})

    def test_unknown_key(self):
        with pytest.raises(OptionError, match="did you mean 'strokes'"):
            masks.BrushMasks(stroke=3)
        assert masks.BrushMasks().options.area == (0.05, 0.35)
