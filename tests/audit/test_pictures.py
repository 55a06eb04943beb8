# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What image files show without a model: thumbnails, and what is blurred, dark or of an odd size beside the others."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anomalib_cdd.audit.pictures import Picture, flags, look_at, overlays


def texture(seed: int, size: tuple[int, int] = (64, 48), light: float = 1.0) -> Image.Image:
    """Image of a width and height."""
    values = light * np.random.default_rng(seed).uniform(90, 170, (size[1], size[0], 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def pictures_of(folder: Path, images: dict[str, Image.Image]) -> list[Picture]:
    for name, image in images.items():
        image.save(folder / name)
    pictures, unreadable = look_at([str(folder / name) for name in images], progress=False)
    assert unreadable == {}
    return [picture for picture in pictures if picture is not None]


def thumbnail(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.thumbnail))


def test_what_is_unlike_the_others_is_flagged_and_nothing_else(tmp_path: Path) -> None:
    images = {f"{seed}.png": texture(seed) for seed in range(20)}
    images["soft.png"] = texture(20).filter(ImageFilter.GaussianBlur(2))
    images["dim.png"] = texture(21, light=0.3)
    images["wide.png"] = texture(22, size=(96, 48))
    found = dict(zip(images, flags(pictures_of(tmp_path, images)), strict=True))
    assert {name: flagged for name, flagged in found.items() if flagged} == {
        "soft.png": ["blurred"],
        # of less light there is less contrast too: its Laplacian has a tenth of the variance
        "dim.png": ["blurred", "dark"],
        "wide.png": ["odd size"],
    }


def test_sets_that_differ_by_nature_are_not_flagged(tmp_path: Path) -> None:
    # as many upright as lying, sharp as soft, light as dark ones
    images = {}
    for seed in range(10):
        images[f"{seed}.png"] = texture(seed)
        images[f"{seed} other.png"] = texture(seed, size=(48, 64), light=0.4).filter(ImageFilter.GaussianBlur(1))
    assert [flagged for flagged in flags(pictures_of(tmp_path, images)) if flagged] == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_have_no_fellows_to_be_unlike(tmp_path: Path, count: int) -> None:
    images = {f"{seed}.png": texture(seed, size=(20 + 40 * seed, 50), light=1 - 0.3 * seed) for seed in range(count)}
    assert flags(pictures_of(tmp_path, images)) == [[]] * count


def test_thumbnails_show_the_whole_image_upright(tmp_path: Path) -> None:
    image = texture(0, size=(400, 200))
    image.paste((255, 0, 0), (0, 0, 400, 40))  # the upper edge
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    [picture] = [seen for seen in look_at([str(tmp_path / "turned.png")], progress=False)[0] if seen is not None]
    assert (picture.width, picture.height) == (400, 200)
    shown = thumbnail(picture)
    assert shown.size == (160, 80)
    red, green, _ = shown.convert("RGB").getpixel((80, 5))
    assert red > 200
    assert green < 100


def test_16_bit_images_are_not_white(tmp_path: Path) -> None:
    values = np.linspace(0, 40_000, 64 * 64).reshape(64, 64).astype(np.uint16)
    [picture] = pictures_of(tmp_path, {"deep.png": Image.fromarray(values)})
    assert 70 < np.asarray(thumbnail(picture).convert("L")).mean() < 155
    assert picture.is_deep


def test_deep_images_share_the_white_of_the_set(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(1500, 4000, (21, 64, 64)).astype(np.uint16)
    values[20] //= 20  # as dark as that among images of 12 bits
    images = {f"{place:02}.png": Image.fromarray(image) for place, image in enumerate(values)}
    pictures = pictures_of(tmp_path, images)
    assert ["dark" in flagged for flagged in flags(pictures)] == [False] * 20 + [True]
    assert np.asarray(thumbnail(pictures[20]).convert("L")).mean() < 20


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    texture(0).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    paths = [str(tmp_path / name) for name in ("half.png", "whole.png", "text.jpg", "gone.png")]
    pictures, unreadable = look_at(paths, progress=False)
    assert [picture is not None for picture in pictures] == [False, True, False, False]
    assert set(unreadable) == {paths[0], paths[2], paths[3]}
    assert all(reason and "\n" not in reason for reason in unreadable.values())


@pytest.mark.parametrize("most", [1.0, 1e-13, 1e6])
def test_heat_maps_share_one_scale_and_lie_in_place(tmp_path: Path, most: float) -> None:
    pictures = pictures_of(tmp_path, {"a.png": texture(0), "b.png": texture(1)})
    quiet, loud = np.zeros((32, 32), dtype=np.float32), np.zeros((32, 32), dtype=np.float32)
    quiet[:16] = 0.1 * most
    loud[:16, 16:] = most
    shown = [
        np.asarray(Image.open(io.BytesIO(laid)).convert("RGB")).astype(int)
        for laid in overlays([picture.thumbnail for picture in pictures], [quiet, loud])
    ]
    assert [pixels.shape for pixels in shown] == [(48, 64, 3)] * 2
    redness = [pixels[..., 0] - pixels[..., 2] for pixels in shown]
    assert redness[1][5:20, 40:60].mean() > 50
    assert redness[1][30:45].mean() < 0
    assert redness[0][5:20].mean() < 0  # a tenth of the other's
