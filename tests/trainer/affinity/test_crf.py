"""The dense CRF: what it does to edges, labels that are left out, and its refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pydantic import ValidationError

from infercam.engine.common.errors import InputError, MissingExtra
from infercam.trainer.affinity.crf import CrfConfig, check_crf, refine


def _scene(h: int = 40, w: int = 61) -> tuple[np.ndarray, np.ndarray]:
    """A red half beside a blue one; label 1's score is blurred over the edge and has a hole."""
    image = np.zeros((h, w, 3), np.uint8)
    image[:, : w // 2] = (200, 20, 20)
    image[:, w // 2 :] = (20, 20, 200)
    ramp = np.clip((w * 0.62 - np.arange(w)) / (w * 0.3), 0.05, 0.95).astype(np.float32)
    one = np.tile(ramp, (h, 1))
    one[10:16, 5:11] = 0.4
    return image, np.stack([1 - one, one])


def test_labels_follow_the_colours() -> None:
    image, scores = _scene()
    before, after = scores.argmax(0), refine(image, scores).argmax(0)
    truth = np.zeros(before.shape, int)
    truth[:, : image.shape[1] // 2] = 1
    assert (before != truth).mean() > 0.005
    assert (after == truth).all()


def test_probabilities_sum_to_one_and_scale_makes_no_difference() -> None:
    image, scores = _scene()
    once = refine(image, scores)
    assert once.dtype == np.float32 and once.shape == scores.shape
    np.testing.assert_allclose(once.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(refine(image, scores * 7), once, atol=1e-4)


def test_a_label_without_score_is_left_out() -> None:
    image, scores = _scene()
    more = np.stack([scores[0], np.full_like(scores[0], 0.01), scores[1]])
    found = refine(image, more, least_peak=0.05)
    assert (found[1] == 0).all()
    np.testing.assert_array_equal(found[[0, 2]], refine(image, scores))
    assert refine(image, more)[1].max() > 0  # not left out where nobody asked


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_decide(count: int) -> None:
    image, scores = _scene(7, 9)
    found = refine(image, scores[:1] if count else scores, least_peak=0 if count else 9)
    assert (found[0] == 1).all()


def test_without_pairs_nothing_changes() -> None:
    image, scores = _scene()
    alone = CrfConfig(gaussian_compat=0, bilateral_compat=0)
    np.testing.assert_allclose(refine(image, scores, alone), scores, atol=1e-4)


def test_another_size_is_refused() -> None:
    image, scores = _scene()
    with pytest.raises(InputError, match="scores are 61×40, the photo 60×40"):
        refine(image[:, :60], scores)


def test_bad_constants_are_refused() -> None:
    with pytest.raises(ValidationError):
        CrfConfig(bilateral_srgb=0)
    with pytest.raises(ValidationError):
        CrfConfig(sxy=3)


def test_the_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(MissingExtra, match=r"infercam\[crf\]"):
        check_crf()
