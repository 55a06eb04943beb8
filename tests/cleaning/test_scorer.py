# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What the look without training says of folders: good ones, bad ones and odd ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import make_sample, save

from anomalib_cdd.cleaning import Recurrence, score_images

Folder = Callable[..., list[Path]]


@pytest.fixture
def make_folder(tmp_path: Path) -> Folder:
    """Write good images and photographs of one part with a spot, which differ by the noise of the camera."""

    def make(good: int = 20, photographs: int = 1) -> list[Path]:
        folder = tmp_path / "images"
        for number in range(good):
            save(make_sample(number).image, folder / f"good_{number:02}.png")
        part = np.asarray(make_sample(200, "spot").image).astype(float)
        for number in range(photographs):
            pixels = part + np.random.default_rng(number).normal(0, 1, part.shape)
            save(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), folder / f"defect_{number}.png")
        return sorted(folder.iterdir())

    return make


def look(paths: list[Path], **options: object) -> Recurrence:
    return score_images(paths, image_size=(96, 96), progress=False, **options)


@pytest.mark.parametrize("photographs", [1, 5])
def test_a_defect_comes_first_however_often_it_was_photographed(make_folder: Folder, photographs: int) -> None:
    paths = make_folder(photographs=photographs)
    found = look(paths)
    assert found.image_paths == [str(path) for path in paths]
    first = np.argsort(-found.scores)[:photographs]
    assert all(paths[row].name.startswith("defect") for row in first)
    assert found.scores[first].min() > 1.5 * np.median(found.scores)
    assert found.duplicates == ([list(range(5))] if photographs == 5 else [])


def test_results_are_in_the_order_that_was_given(make_folder: Folder) -> None:
    paths = make_folder(good=8, photographs=2)
    order = np.random.default_rng(0).permutation(len(paths))
    found, mixed = look(paths), look([paths[row] for row in order])
    assert mixed.image_paths == [str(paths[row]) for row in order]
    for name in ("scores", "maps", "features"):
        assert np.array_equal(getattr(mixed, name), getattr(found, name)[order])
    [photographs] = mixed.duplicates
    assert sorted(paths[order[row]].name for row in photographs) == ["defect_0.png", "defect_1.png"]


def test_the_map_shows_where(make_folder: Folder) -> None:
    found = look(make_folder())
    assert found.maps.shape == (21, 12, 12)
    defect = found.maps[0].astype(float)
    assert defect.max() > 2 * np.median(defect)


def test_the_same_folder_has_the_same_scores_and_the_sample_depends_on_its_seed(make_folder: Folder) -> None:
    paths = make_folder()
    first, again, other = (look(paths, reference_images=5, seed=seed).scores for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # batches are no part of the result
    assert np.allclose(first, look(paths, reference_images=5, batch_size=3).scores, atol=1e-3)


def test_a_teacher_whose_patches_are_shorter_than_the_projection_is_not_projected(make_folder: Folder) -> None:
    found = look(make_folder(), backbone="efficientnet_lite0", pre_trained=False)
    assert found.features.shape == (21, 4 * (40 + 112))
    assert np.isfinite(found.scores).all()


def test_images_of_very_different_sizes_are_read(make_folder: Folder, tmp_path: Path) -> None:
    paths = make_folder(good=10)
    for number, size in enumerate([(1000, 20), (20, 700), (16, 16)]):
        save(make_sample(number).image.resize(size), tmp_path / "odd" / f"{number}.png")
    found = look([*paths, *sorted((tmp_path / "odd").iterdir())])
    assert len(found.scores) == 14
    assert np.isfinite(found.scores).all()


def test_images_that_are_all_the_same_are_equally_suspicious(tmp_path: Path) -> None:
    for number in range(6):
        save(make_sample(0).image, tmp_path / "same" / f"{number}.png")
    found = look(sorted((tmp_path / "same").iterdir()))
    assert np.ptp(found.scores) == 0
    assert found.duplicates == [[0, 1, 2, 3, 4, 5]]


def test_parts_that_were_all_photographed_twice_are_told_apart(tmp_path: Path) -> None:
    for number in range(12):
        kind = "spot" if number == 11 else "good"
        for photograph in range(2):
            save(make_sample(number, kind).image, tmp_path / "twice" / f"{number:02}_{photograph}.png")
    found = look(sorted((tmp_path / "twice").iterdir()))
    assert found.duplicates == [[2 * number, 2 * number + 1] for number in range(12)]
    assert set(np.argsort(-found.scores)[:2]) == {22, 23}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_are_an_error_in_one_line(make_folder: Folder, count: int) -> None:
    paths = make_folder(good=3)[:count]
    with pytest.raises(ValueError, match=f"^{count} images: at least 3 are needed"):
        look(paths)


def test_an_image_that_cannot_be_read_is_named(make_folder: Folder) -> None:
    paths = make_folder(good=4)
    paths[2].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"good_01\.png"):
        look(paths)
