# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from anomalib_cdd.thresholds.estimators import label_free_pixel_threshold, label_free_threshold, within_fence


def parts(good: int, bad: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.lognormal(-2, 0.2, good), generator.lognormal(-1.2, 0.2, bad)


def test_the_fence_by_hand() -> None:
    # quartiles 2 and 4 of 1, 2, 3, 4, 9: the fence is at 4 + 2 * 2
    assert within_fence([9, 1, 2, 3, 4]).tolist() == [False, True, True, True, True]
    assert within_fence([8, 1, 2, 3, 4]).all()


def test_the_threshold_by_hand() -> None:
    scores = [*range(1, 20), 1000]
    # 19 scores are within the fence: the one of rank .9 * (19 + 1), and halfway between ranks 16 and 17
    assert label_free_threshold(scores, 0.1) == pytest.approx(18)
    assert label_free_threshold(scores, 0.175) == pytest.approx(16.5)
    # fewer good images than a rate asks for: the highest of them
    assert label_free_threshold(scores, 0.01) == pytest.approx(19)


def test_the_pixel_threshold_by_hand() -> None:
    scores = [1, 2, 3, 4, 9]
    pixels = np.arange(20).reshape(5, 4)
    # 16 pixels of four images; those of the fifth, 16 to 19, do not count
    assert label_free_pixel_threshold(pixels, scores, 2 / 17) == pytest.approx(14)
    assert label_free_pixel_threshold(pixels, scores, 1 / 17) == pytest.approx(15)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_the_stated_share_of_new_good_images_exceeds_it(rate: float, shift: float) -> None:
    threshold = label_free_threshold(parts(4000, 0)[0] + shift, rate)
    assert (parts(4000, 0, seed=1)[0] + shift > threshold).mean() == pytest.approx(rate, abs=0.02)


def test_bad_images_in_the_training_set_hardly_move_it() -> None:
    good, bad = parts(200, 20)
    both = np.concatenate([good, bad])
    contaminated = label_free_threshold(both, 0.1)
    assert contaminated == pytest.approx(label_free_threshold(good, 0.1), rel=0.15)
    # a plain quantile of what is there, or the maximum, goes where the bad images are
    assert both.max() > 1.5 * contaminated
    assert (bad > contaminated).mean() > 0.9


def test_pixels_of_objects_on_a_background() -> None:
    """Two modes, four fifths of the pixels in the upper one: a spread about the median lands above the whole map."""
    generator = np.random.default_rng(0)
    upper = generator.random((110, 64)) < 0.8
    pixels = np.where(upper, generator.normal(0.25, 0.03, upper.shape), generator.normal(0.02, 0.005, upper.shape))
    scores = generator.normal(0.3, 0.01, 110)
    scores[:10], pixels[:10, :3] = 0.6, 0.55  # images with a defect
    threshold = label_free_pixel_threshold(pixels, scores, 0.01)
    assert (pixels[10:] > threshold).mean() == pytest.approx(0.01, abs=0.001)
    assert (pixels[:10] > threshold).any(axis=1).all()


@pytest.mark.parametrize("scores", [[0.5], [0.3, 0.3, 0.3], [0.0, 0.0, 1.0], list(range(12)), [-3.0, -2.0]])
def test_few_or_equal_scores_have_one_too(scores: list[float]) -> None:
    threshold = label_free_threshold(scores, 0.1)
    assert min(scores) <= threshold <= max(scores)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="1 of 2 are not"):
        label_free_threshold([1.0, np.nan], 0.1)
    with pytest.raises(ValueError, match="0 of 0"):
        label_free_threshold([], 0.1)
    with pytest.raises(ValueError, match="1 of 2 are not"):
        label_free_pixel_threshold([[1.0, np.inf]], [1.0], 0.1)
    for rate in (0.7, 0.0):
        with pytest.raises(ValueError, match=f"false alarm rate is {rate}"):
            label_free_threshold([1.0], rate)
