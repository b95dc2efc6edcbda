"""Labels from maps: the two alphas' semantics by hand, thresholds as maps are evaluated, settings refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infercam.trainer.affinity.crf import CrfConfig
from infercam.trainer.affinity.labels import combine, make_label, named_values, with_background
from infercam.trainer.affinity.pseudo_labels import winners
from infercam.trainer.affinity.settings import AffinityLabelConfig, ThresholdLabelConfig

PLAIN = AffinityLabelConfig(crf=None)


def test_two_alphas_by_hand() -> None:
    """(1 - m)^4 = m at 0.2755; (1 - m)^32 = m at 0.0770 (so between the two a pixel is left open)."""
    maps = np.array([[[0.0, 0.076, 0.078, 0.2, 0.275, 0.276, 0.9]]], np.float32)
    found = make_label(PLAIN, maps, [6], None)
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 0, 255, 255, 255, 7, 7]]


def test_of_two_classes_the_larger_map_wins_and_values_are_the_stores() -> None:
    maps = np.array([[[0.8, 0.1, 0.5, 0.02]], [[0.3, 0.6, 0.5, 0.01]]], np.float32)
    assert make_label(PLAIN, maps, [14, 2], None).tolist() == [[15, 3, 15, 0]]  # a tie: the first map


def test_every_combination_of_low_and_high() -> None:
    low = np.array([0, 0, 1, 1, 2, 2])
    high = np.array([0, 1, 0, 1, 1, 2])
    #                       both  open contradiction agree disagree agree
    assert combine(low, high).tolist() == [0, 255, 0, 1, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40))
def test_combine_is_psas_order_of_assignments(pairs: list[tuple[int, int]]) -> None:
    low, high = np.array(pairs).T
    want = low.copy()
    want[low == 0] = 255
    want[high == 0] = 0
    assert (combine(low, high) == want).all()


def test_thresholds_as_maps_are_evaluated() -> None:
    maps = np.array([[[0.2, 0.3, 0.31, 0.9]]], np.float32)
    assert make_label(ThresholdLabelConfig(threshold=0.3), maps, [0], None).tolist() == [[0, 0, 1, 1]]
    band = ThresholdLabelConfig(threshold=0.3, ignore_between=(0.2, 0.9))
    assert make_label(band, maps, [0], None).tolist() == [[0, 255, 255, 1]]  # the bounds are kept


def test_an_image_without_classes_is_background() -> None:
    none = np.zeros((0, 2, 3), np.float32)
    assert (make_label(PLAIN, none, [], None) == 0).all()
    assert (
        make_label(ThresholdLabelConfig(threshold=0, ignore_between=(0.1, 0.2)), none, [], None) == 0
    ).all()


def test_background_score() -> None:
    maps = np.array([[[0.0, 0.25, 1.0]], [[0.5, 0.0, 1.0]]], np.float32)
    found = with_background(maps, 2)
    np.testing.assert_allclose(found[0], [[0.25, 0.5625, 0]])
    assert found.dtype == np.float32 and (found[1:] == maps).all()
    assert (with_background(np.zeros((0, 2, 3), np.float32), 4) == 1).all()


def test_names_and_open_pixels() -> None:
    assert named_values(np.array([0, 1, 2, 255]), [19, 3]).tolist() == [0, 20, 4, 255]
    scores = np.array([[[0.5, 0.30, 0.0]], [[0.4, 0.70, 0.0]], [[0.1, 0.05, 0.0]]], np.float32)
    assert winners(scores, [4, 8]).tolist() == [[0, 5, 0]]
    assert winners(scores, [4, 8], least_share=0.6).tolist() == [[255, 5, 0]]


def test_the_crf_moves_labels_to_the_edge() -> None:
    h, w = 40, 60
    image = np.full((h, w, 3), 30, np.uint8)
    image[10:30, 15:45] = (220, 180, 40)
    y, x = np.mgrid[:h, :w]
    maps = np.exp(-((((y - 19.5) / 11) ** 2 + ((x - 29.5) / 16) ** 2) ** 2))[None].astype(np.float32)
    truth = np.zeros((h, w), np.uint8)
    truth[10:30, 15:45] = 3
    with_crf = make_label(AffinityLabelConfig(), maps, [2], image)
    without = make_label(PLAIN, maps, [2], image)
    wrong = [((label != truth) & (label != 255)).mean() for label in (with_crf, without)]
    assert wrong[0] < 0.01 < wrong[1]
    assert (with_crf == 3).sum() > 0.9 * (truth == 3).sum()
    with pytest.raises(ValueError, match="needs the photo"):
        make_label(AffinityLabelConfig(), maps, [2], None)


@pytest.mark.parametrize(
    "change",
    [{"low_alpha": 0}, {"alpha": 4}, {"crf": {"iterations": 0}}, {"kind": "threshold"}],
)
def test_bad_affinity_settings(change: dict) -> None:
    with pytest.raises(ValidationError):
        AffinityLabelConfig(**change)


@pytest.mark.parametrize(
    "change", [{}, {"threshold": 1.5}, {"threshold": 0.3, "ignore_between": (0.5, 0.2)}, {"low_alpha": 4}]
)
def test_bad_threshold_settings(change: dict) -> None:
    with pytest.raises(ValidationError):
        ThresholdLabelConfig(**change)


def test_settings_come_back_from_json() -> None:
    config = AffinityLabelConfig(low_alpha=3, crf=CrfConfig(iterations=4))
    assert AffinityLabelConfig.model_validate_json(config.model_dump_json()) == config
