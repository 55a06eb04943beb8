# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Grey values come out as they are, upright, at any size, and a file that cannot be used is named."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from anomalib_cdd import read_image
from anomalib_cdd.training.reading import MAX_PIXELS, read_for_display, read_mask, white_level

if TYPE_CHECKING:
    from pathlib import Path

RAMP = np.linspace(0, 1, 32 * 48).reshape(32, 48)


def values(path: Path, **options: Any) -> np.ndarray:
    return read_image(path, **options).numpy()


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray((RAMP * 255).astype(np.uint8)), "PNG"),
        (Image.fromarray((RAMP * 255).astype(np.uint8)).convert("P"), "PNG"),
        (Image.fromarray((RAMP * 255).astype(np.uint8)).convert("LA"), "PNG"),
        (Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG"),
        (Image.fromarray((RAMP * 65535).astype(np.uint16)), "TIFF"),
        (Image.fromarray((RAMP * 65535).astype(">u2")), "TIFF"),
        (Image.fromarray((RAMP * 65535).astype(np.int32)), "TIFF"),
    ],
    ids=["L", "P", "LA", "I;16", "I;16 TIFF", "I;16B TIFF", "I TIFF"],
)
def test_grey_keeps_its_scale(tmp_path: Path, image: Image.Image, kind: str) -> None:
    image.save(tmp_path / "a", format=kind)
    read = read_image(tmp_path / "a")
    assert read.shape == (3, 32, 48)
    assert read.dtype == torch.float32
    np.testing.assert_allclose(read.numpy(), np.broadcast_to(RAMP, (3, 32, 48)), atol=1 / 255)


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_deep_colour_keeps_its_lower_bits(tmp_path: Path, ending: str, channels: int) -> None:
    """Pillow takes the upper eight of sixteen: of twelve bits four would be left."""
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 10, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{ending}"), pixels)  # blue first
    path = tmp_path / f"a.{ending}"
    np.testing.assert_allclose(values(path, white=4095), pixels[..., 2::-1].transpose(2, 0, 1) / 4095, atol=1e-6)
    assert white_level([path]) == 4095


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_masks_and_pages_stand_upright(tmp_path: Path, orientation: int, deep: bool) -> None:
    grey = (RAMP * 255).astype(np.uint8)
    stored = Image.fromarray(grey.astype(np.uint16) if deep else grey)
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    np.testing.assert_allclose(values(tmp_path / "a.png", white=255)[0] * 255, upright, atol=1e-3)
    assert np.array_equal(np.asarray(read_for_display(tmp_path / "a.png"))[..., 0], upright)
    mask = Image.fromarray((RAMP > 0.5).astype(np.uint8) * 255)
    mask.save(tmp_path / "mask.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "mask.png"))) > 0
    assert np.array_equal(read_mask(tmp_path / "mask.png").numpy(), expected)


def test_deep_colour_stands_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, (8, 10, 3), dtype=np.uint16)
    encoded = cv2.imencode(".png", pixels)[1].tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(encoded[:33] + chunk + encoded[33:])  # after the header
    expected = np.rot90(pixels[..., ::-1], -1).transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(values(tmp_path / "a.png"), expected, atol=1e-6)


# --- white


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["L", "RGBA", "I;16", "RGB;16"])
def test_a_tiff_stands_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    depth = 65535 if "16" in kind else 255
    channels = {"L": 1, "RGBA": 4, "I;16": 1, "RGB;16": 3}[kind]
    pixels = (
        np.random.default_rng(0).integers(0, depth, (6, 8, channels)).astype(np.uint16 if "16" in kind else np.uint8)
    )
    path = tmp_path / "a.tiff"
    if kind == "RGB;16":  # which Pillow does not write
        path.write_bytes(deep_tiff(pixels, orientation))
    else:
        Image.fromarray(pixels.squeeze()).save(path, tiffinfo={0x0112: orientation})
    image, turned = pixels, pixels.transpose(1, 0, 2)
    upright = [
        image, image[:, ::-1], image[::-1, ::-1], image[::-1], turned, turned[:, ::-1], turned[::-1, ::-1], turned[::-1]
    ][orientation - 1]  # fmt: skip
    expected = np.broadcast_to(upright[..., : 3 if channels > 1 else 1].transpose(2, 0, 1), (3, *upright.shape[:2]))
    np.testing.assert_allclose(values(path), expected / depth, atol=1e-6)


def deep_tiff(pixels: np.ndarray, orientation: int) -> bytes:
    """An uncompressed TIFF of 16 bits a channel: its header, its one directory, its pixels."""
    height, width, channels = pixels.shape
    names = (
        (256, width),
        (257, height),
        (258, 0),
        (259, 1),
        (262, 2),
        (273, 0),
        (274, orientation),
        (277, channels),
        (278, height),
    )
    end = 8 + 2 + 12 * len(names) + 4
    places = {258: end, 273: end + 2 * channels}
    directory = b"".join(
        struct.pack("<HHI", name, 4 if name == 273 else 3, channels if name == 258 else 1)
        + struct.pack("<I", places.get(name, value))
        for name, value in names
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(names)) + directory + struct.pack("<I", 0)
    return head + struct.pack(f"<{channels}H", *[16] * channels) + pixels.astype("<u2").tobytes()


@pytest.mark.parametrize(
    ("highest", "white"),
    [(200, 255), (255, 255), (256, 1023), (1024, 4095), (3480, 4095), (4096, 16383), (16384, 65535), (65535, 65535)],
)
def test_white_is_the_smallest_depth_that_holds_the_training_set(tmp_path: Path, highest: int, white: int) -> None:
    for name, value in (("a", highest // 2), ("b", highest)):
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / f"{name}.png")
    assert white_level([tmp_path / "a.png", tmp_path / "b.png"]) == white
    assert values(tmp_path / "b.png", white=white).max() == pytest.approx(highest / white)


def test_white_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Image.fromarray(np.full((4, 4), 3480, np.uint16)).save(tmp_path / "a.png")
    white_level([tmp_path / "a.png"])
    assert [m for m in caplog.messages if "12 bits (highest 3480): white is 4095" in m] == caplog.messages


def test_eight_bits_have_no_white_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")  # whoever reads it says so
    assert white_level([tmp_path / "a.png", tmp_path / "b.png"]) is None
    assert not caplog.messages


def test_brighter_than_white_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 5000, np.uint16)).save(tmp_path / "a.png")
    assert values(tmp_path / "a.png", white=4095).max() == 1


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)])
def test_values_of_unknown_scale_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff has .* save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")


def test_a_page_shows_deep_grey_by_its_own_depth(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_for_display(tmp_path / "a.png")).max() == 255
    assert np.asarray(read_for_display(tmp_path / "a.png", 65535)).max() == 16


# --- masks


def square(high: int = 255) -> np.ndarray:
    """Ten by ten pixels, off the eight by eight blocks of a JPEG."""
    mask = np.zeros((64, 64), np.uint8)
    mask[21:31, 37:47] = high
    return mask


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mask_has_the_pixels_that_were_drawn(tmp_path: Path, kind: str, mode: str) -> None:
    Image.fromarray(square()).convert(mode).save(tmp_path / "mask", format=kind)
    assert np.array_equal(read_mask(tmp_path / "mask").numpy(), square() > 0)


def test_a_smoothed_mask_is_cut_at_half(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(square(), (0, 0), 1.5)
    assert (smooth > 0).sum() > 2 * 100
    Image.fromarray(smooth).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == (smooth >= 128).sum()


@pytest.mark.parametrize("labels", [[1], [1, 2, 3], [60, 120, 180, 240]])
def test_every_label_of_a_mask_is_a_defect(tmp_path: Path, labels: list[int]) -> None:
    mask = np.zeros((64, 64), np.uint8)
    for place, label in enumerate(labels):
        mask[place * 10 : place * 10 + 5, :5] = label
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 25 * len(labels)


@pytest.mark.parametrize("high", [1, 65535])
def test_a_mask_may_have_sixteen_bits(tmp_path: Path, high: int) -> None:
    Image.fromarray((square() > 0).astype(np.uint16) * high).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 100


# --- size, damage


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("jpg", {}), ("tiff", {"compression": "tiff_lzw"})])
def test_pillow_s_limit_is_neither_used_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, options: dict[str, str]
) -> None:
    """A line-scan camera's 24000 x 8000 are no attack."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(square()).save(path, **options)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert read_image(path).shape == (3, 64, 64)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert MAX_PIXELS >= 24_000 * 8_000


@pytest.mark.parametrize("read", [read_image, read_mask, read_for_display])
def test_beyond_the_limit_path_and_limit_are_named(tmp_path: Path, read: Any) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 30_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "scan.png").write_bytes(data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(ValueError, match=rf"scan\.png has 40000 x 30000 pixels, more than the limit of {MAX_PIXELS}"):
        read(tmp_path / "scan.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole", format=kind)
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"^cannot read the image .*half\.png \(.*\); replace or remove it"):
        read_image(tmp_path / "half.png")


@pytest.mark.parametrize("kind", ["deep", "deep colour"])
def test_a_truncated_deep_file_is_named(tmp_path: Path, kind: str) -> None:
    shape = (64, 64) if kind == "deep" else (64, 64, 3)
    pixels = np.random.default_rng(0).integers(0, 4096, shape, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "whole.tiff"), pixels)
    whole = (tmp_path / "whole.tiff").read_bytes()
    (tmp_path / "half.tiff").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^cannot read the image .*half\.tiff"):
        read_image(tmp_path / "half.tiff")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the image .*gone\.png"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("name", ["Größe 部品 1.png", "x" * 120])
def test_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "/".join(["Prüfteile" * 10] * 6)
    folder.mkdir(parents=True)
    Image.new("L", (4, 4), 255).save(folder / name, format="PNG")
    assert len(str(folder)) > 512
    assert values(folder / name).min() == 1


def test_a_kind_of_file_that_pillow_does_not_finish_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> None:
        msg = "Unknown BLP encoding 93"
        raise NotImplementedError(msg)

    path = tmp_path / "phone.jpg"
    Image.new("RGB", (4, 4)).save(path)
    for place, name in ((JpegImageFile, "load"), (Image, "open")):
        monkeypatch.setattr(place, name, unknown)
        with pytest.raises(ValueError, match=r"phone\.jpg \(Unknown BLP encoding 93\)"):
            read_image(path)
