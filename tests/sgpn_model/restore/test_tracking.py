"""Faces are followed through known movements: between searches, through cuts, and smoothed without delay."""

import cv2
import numpy as np
import pytest

from sgpn_data.alignment import transform_points
from sgpn_model.restore.tracking import Track, Tracker, is_cut

FACE = np.array([[208.0, 104.0], [243.0, 104.0], [226.0, 124.0], [211.0, 141.0], [241.0, 141.0]])  # the astronaut's
SIZE = (240, 200)


@pytest.fixture
def film(astronaut):
    """Frames of a moving camera, and the true points in each."""

    def make(count, speed=1.0):
        frames, truth = [], []
        for number in range(count):
            t = number * speed
            matrix = cv2.getRotationMatrix2D((226, 120), 8 * np.sin(t / 9), 1 + 0.1 * np.sin(t / 12))
            matrix[:, 2] += [120 - 226 + 12 * np.sin(t / 7), 100 - 120 + 6 * np.cos(t / 8)]
            frames.append(cv2.warpAffine(astronaut, matrix, SIZE, borderMode=cv2.BORDER_REFLECT))
            truth.append(transform_points(FACE, matrix))
        return frames, np.stack(truth)

    return make


class Search:
    """Finds the true points, off by noise, in frames as they come."""

    def __init__(self, truth, noise=0.0, blind=(), strangers=()):
        self.truth, self.noise, self.blind, self.strangers = truth, noise, blind, strangers
        self.number, self.rng = 0, np.random.default_rng(0)

    def __call__(self, bgr):
        found = [] if self.number in self.blind else [self.truth[self.number]]
        if self.number in self.strangers:
            found.append(self.truth[self.number] * 0.5 + 5)
        return [points + self.rng.normal(0, self.noise, (5, 2)) if self.noise else points for points in found]


def follow(frames, search, every=5):
    tracker = Tracker(search, every)
    for number, frame in enumerate(frames):
        search.number = number
        tracker.add(frame)
    return tracker


def test_a_face_is_followed_between_searches(film):
    frames, truth = film(31)
    tracker = follow(frames, Search(truth), every=10)
    (track,) = tracker.finish()
    assert track.start == 0 and track.end == 31 and tracker.searches == 4
    assert np.linalg.norm(np.stack(track.points5) - truth, axis=2).max() < 0.6


def test_smoothing_takes_the_searchs_noise_and_not_the_movement(film):
    frames, truth = film(60)
    (track,) = follow(frames, Search(truth, noise=1.0), every=2).finish()
    raw, smooth = np.stack(track.points5) - truth, track.smoothed() - truth

    def jitter(off):
        return np.abs(np.diff(off, 2, axis=0)).mean()

    assert jitter(smooth) < 0.35 * jitter(raw)
    assert np.abs(smooth.mean(axis=1)).mean() < np.abs(raw.mean(axis=1)).mean()
    # No delay: the smoothed way fits the true one best where it is, not a frame earlier or later.
    way, wanted = track.smoothed().mean(axis=1), truth.mean(axis=1)
    errors = [np.abs(way[3:-3] - wanted[3 + lag : len(wanted) - 3 + lag]).mean() for lag in (-2, -1, 0, 1, 2)]
    assert np.argmin(errors) == 2


def test_a_polynomial_way_is_not_changed_by_smoothing():
    times = np.arange(30.0)[:, None, None]
    way = np.broadcast_to(3 + 2 * times - 0.1 * times**2, (30, 5, 2))
    np.testing.assert_allclose(Track(0, list(way)).smoothed(), way, atol=1e-9)
    for length in (1, 2, 3):
        np.testing.assert_allclose(Track(0, list(way[:length])).smoothed(), way[:length], atol=1e-9)


def test_what_flow_adds_up_to_is_spread_back_to_the_last_search():
    track = Track(0, [np.zeros((5, 2)) for _ in range(5)])
    track.found(np.full((5, 2), 4.0))
    assert [points[0, 0] for points in track.points5] == [0, 1, 2, 3, 4] and track.anchor == 4


def test_a_cut_ends_every_track_and_begins_others(film, astronaut):
    frames, truth = film(12)
    other = cv2.resize(255 - astronaut[300:500, 100:340], SIZE)
    tracker = follow(
        [*frames, *[other] * 3, *frames], Search(np.concatenate([truth, truth[:3], truth]), blind=range(12, 15))
    )
    first, second = tracker.finish()
    assert (first.start, first.end, second.start, second.end) == (0, 12, 15, 27)
    assert not is_cut(np.zeros(576), np.zeros(576))


def test_a_face_that_is_not_found_again_ends_where_it_was_last_seen(film):
    frames, truth = film(30)
    (track,) = follow(frames, Search(truth, blind=range(11, 30)), every=5).finish()
    assert track.end == 11


def test_one_look_that_misses_it_does_not_end_a_track(film):
    frames, truth = film(30)
    (track,) = follow(frames, Search(truth, blind=[10, 15]), every=5).finish()
    assert track.end == 30


def test_a_face_of_one_frame_is_none(film):
    frames, truth = film(20)
    tracks = follow(frames, Search(truth, strangers=[19]), every=1).finish()
    assert len(tracks) == 1 and tracks[0].end == 20
