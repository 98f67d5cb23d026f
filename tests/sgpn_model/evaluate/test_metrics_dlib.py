"""The metrics by dlib, where its packages are; and what they say where they are not."""

import importlib.util

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from sgpn_data.degradation import Degradation
from sgpn_data.tensors import to_tensor
from sgpn_model.evaluate.metrics import MetricUnavailable, identity_dlib, landmark_dlib

THERE = all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))
METRICS = (landmark_dlib, identity_dlib)


@pytest.mark.skipif(THERE, reason="dlib is here")
@pytest.mark.parametrize("metric", METRICS)
def test_without_the_packages_it_says_which(metric):
    with pytest.raises(MetricUnavailable, match="needs the package (dlib|face_recognition_models)"):
        metric()


@pytest.fixture(scope="module")
def faces():
    """The astronaut's face at 256 px, good and in two degradations, and an ellipse of 68 points on it."""
    face = np.ascontiguousarray(astronaut()[20:276, 96:352, ::-1])
    floats = face.astype(np.float32) / 255
    bad = [Degradation(level, reference_size=512)(floats, np.random.default_rng(0)) for level in ("mild", "severe")]
    angle = np.linspace(0, 2 * np.pi, 68)
    points = np.stack([128 + 55 * np.cos(angle), 100 + 60 * np.sin(angle)], axis=1)
    return to_tensor(face)[None], [to_tensor(image)[None] for image in bad], torch.tensor(points[None]).float()


@pytest.mark.skipif(not THERE, reason="needs dlib and face_recognition_models")
@pytest.mark.parametrize("metric", METRICS)
class TestWithThem:
    def test_a_face_is_itself(self, metric, faces):
        good, _, points = faces
        assert metric()(good, good, landmarks68=points) == [0.0]

    def test_a_worse_picture_is_further_away(self, metric, faces):
        good, (mild, severe), points = faces
        distance = metric()
        near, far = (distance(image, good, landmarks68=points)[0] for image in (mild, severe))
        assert 0 < near < far

    def test_unknown_landmarks_have_no_value(self, metric, faces):
        good, _, points = faces
        assert np.isnan(metric()(good, good, landmarks68=points * float("nan"))[0])
