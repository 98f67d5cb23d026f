"""Faces followed through a film: found every few frames, carried along by optical flow between, and smoothed without delay."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from scipy.signal import savgol_filter

from sgpn_data.alignment import similarity_transform, transform_points

# All of it choices of ours.
LARGEST = 960  # pixels of the longer side, at which motion is measured
LEAST_FEATURES = 8  # that agree on a face's motion; with fewer it is lost
ROUND_TRIP = 1.0  # pixels that a feature may be off after it was followed there and back
CUT = 0.6  # frames whose small pictures correlate less belong to different scenes
SAME = 0.5  # a found face is a followed one where their points are nearer than this, in parts of the eyes' distance
MISSES = 2  # so many times a followed face may not be found again where it should be
SHORTEST = 3  # frames; a shorter track was no face
WINDOW, ORDER = 11, 2  # frames and degree of the local polynomial that smooths points


@dataclass
class Track:
    """One face from a frame to another.

    Attributes:
        start: number of its first frame. points5: per frame (5, 2), OpenCV pixels.
    """

    start: int
    points5: list[np.ndarray]
    misses: int = 0
    anchor: int = 0  # the frame at which it was last found, counted from its start

    @property
    def end(self) -> int:
        """Number of the frame after its last."""
        return self.start + len(self.points5)

    def found(self, points5: np.ndarray) -> None:
        """Its points of the latest frame as the detector sees them; what flow had added up to since is spread over the way."""
        off = points5 - self.points5[-1]
        last = len(self.points5) - 1
        for place in range(self.anchor + 1, last + 1):
            self.points5[place] = self.points5[place] + off * (place - self.anchor) / (last - self.anchor)
        self.points5[-1] = points5
        self.anchor, self.misses = last, 0

    def smoothed(self) -> np.ndarray:
        """(frames, 5, 2): a polynomial fitted around each frame, before and after it, so that nothing lags behind."""
        points = np.stack(self.points5)
        window = min(WINDOW, len(points) - (len(points) + 1) % 2)
        if window <= ORDER:
            return points
        return savgol_filter(points, window, ORDER, axis=0)


@dataclass
class Tracker:
    """Follows all faces of a film.

    Args:
        detect: picture (uint8 HxWx3 BGR) -> five points of each face (5, 2). every: frames from one search to the next.
    """

    detect: Callable[[np.ndarray], list[np.ndarray]]
    every: int = 5
    tracks: list[Track] = field(default_factory=list)
    searches: int = 0

    def __post_init__(self):
        self._live: list[Track] = []
        self._before: np.ndarray | None = None
        self._small: np.ndarray | None = None
        self._number = 0
        self._since = 0

    def add(self, bgr: np.ndarray) -> list[tuple[Track, np.ndarray]]:
        """Takes the next frame; the tracks that are in it, with their points as far as known now."""
        scale = min(1.0, LARGEST / max(bgr.shape[:2]))
        grey = cv2.cvtColor(cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        small = cv2.resize(grey, (32, 18), interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
        cut = self._small is not None and is_cut(self._small, small)
        lost: list[Track] = []
        if cut:
            self._live = []
        elif self._before is not None:
            for track in list(self._live):
                moved = follow(self._before, grey, track.points5[-1] * scale)
                if moved is None:
                    self._live.remove(track)
                    lost.append(track)
                else:
                    track.points5.append(moved / scale)
        self._before, self._small = grey, small
        if cut or lost or self._since == 0 or self._since >= self.every:
            self._search(bgr, lost)
            self._since = 0
        self._since += 1
        self._number += 1
        return [(track, track.points5[-1]) for track in self._live]

    def _search(self, bgr: np.ndarray, lost: list[Track]) -> None:
        self.searches += 1
        found = list(self.detect(bgr))
        for track in list(self._live):
            place = _same(track, found)
            if place is not None:
                track.found(found.pop(place))
            else:
                track.misses += 1
                if track.misses > MISSES:
                    # It was last seen at its anchor; what came after was guessed.
                    del track.points5[track.anchor + 1 :]
                    self._live.remove(track)
        for track in lost:
            place = _same(track, found)
            if place is not None:  # flow lost what the detector still sees there
                track.points5.append(found.pop(place))
                track.anchor, track.misses = len(track.points5) - 1, 0
                self._live.append(track)
        for points in found:
            track = Track(self._number, [points])
            self._live.append(track)
            self.tracks.append(track)

    def finish(self) -> list[Track]:
        """The tracks, without those that were too short to be faces."""
        return [track for track in self.tracks if len(track.points5) >= min(SHORTEST, self._number)]


def _same(track: Track, found: list[np.ndarray]) -> int | None:
    """Which of the found faces is a track's."""
    own = track.points5[-1]
    off = [np.linalg.norm(points - own, axis=1).mean() for points in found]
    near = bool(off) and min(off) < SAME * np.linalg.norm(own[1] - own[0])
    return int(np.argmin(off)) if near else None


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two small pictures, float64 vectors, show different scenes."""
    a, b = before - before.mean(), after - after.mean()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    if size < 1e-6:  # one is a single colour, as between scenes
        return bool(np.abs(before - after).mean() > 8)
    return bool(a @ b < CUT * size)


def follow(before: np.ndarray, after: np.ndarray, points5: np.ndarray) -> np.ndarray | None:
    """Where five points (5, 2) of a face went from one grey picture to the next; None: it is lost.

    Features on the face are followed there and back by Lucas and Kanade's optical flow, and the similarity transform that
    most of them agree on moves the points.
    """
    height, width = before.shape
    centre, eyes = points5.mean(0), np.linalg.norm(points5[1] - points5[0])
    mask = np.zeros_like(before)
    axes = [max(4, round(factor * float(eyes))) for factor in (1.1, 1.4)]
    cv2.ellipse(mask, [round(float(x)) for x in centre], axes, 0, 0, 360, 255, -1)
    features = cv2.goodFeaturesToTrack(before, 60, 0.01, max(2.0, float(eyes) / 12), mask=mask)
    if features is None or len(features) < LEAST_FEATURES:
        return None
    settings: Any = {"winSize": (15, 15), "maxLevel": 3}
    nothing: Any = None
    there, good, _ = cv2.calcOpticalFlowPyrLK(before, after, features, nothing, **settings)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, there, nothing, **settings)
    off = np.linalg.norm((back - features)[:, 0], axis=1)
    kept = (good[:, 0] == 1) & (returned[:, 0] == 1) & (off < ROUND_TRIP)
    if kept.sum() < LEAST_FEATURES:
        return None
    matrix, agree = cv2.estimateAffinePartial2D(features[kept], there[kept], ransacReprojThreshold=1.5)
    if matrix is None or agree.sum() < LEAST_FEATURES:
        return None
    sure = agree[:, 0] == 1
    matrix = similarity_transform(features[kept][sure, 0].astype(np.float64), there[kept][sure, 0].astype(np.float64))
    moved = transform_points(points5, matrix)
    inside = (moved > -eyes).all() and (moved[:, 0] < width + eyes).all() and (moved[:, 1] < height + eyes).all()
    return moved if inside else None
