# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of cropped images are drawn where they belong."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.data.transforms import ExportableCenterCrop
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_cdd.training.visualization import Margins, UncroppedVisualizer, crop_margins, small_maps, uncrop


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([Resize((256, 256)), CenterCrop(224)], Margins(16, 16, 16, 16)),
        ([Resize((100, 201)), CenterCrop((80, 100)), Normalize([0.5], [0.5])], Margins(50, 51, 10, 10)),
        ([Resize((256, 256))], Margins()),
        ([Resize(256), CenterCrop(224)], Margins()),  # a side of unknown length
    ],
)
def test_margins_are_what_the_crop_takes(steps: list, expected: Margins) -> None:
    assert crop_margins(Compose(steps)) == expected
    if any(expected):
        image = torch.rand(1, 3, *steps[0].size)
        cropped = steps[1](image)
        back = uncrop(cropped, expected)
        assert back.shape == image.shape
        inside = back != 0
        assert torch.equal(back[inside], image[inside])
    assert crop_margins(None) == Margins()
    # the short side becomes 256, the long one 512
    assert crop_margins(Compose([Resize(256), CenterCrop(224)]), (300, 600)) == Margins(144, 144, 16, 16)


def test_small_maps_keep_values_that_half_precision_has_not() -> None:
    """A product of small distances, as Stfpm's maps are, and a Mahalanobis distance of many thousands."""
    maps = torch.tensor([1e-10, 1e6])[:, None, None].expand(2, 128, 96)
    low, high = small_maps(maps, None, torch.empty(2, 3, 128, 96))
    assert low.shape == high.shape == (64, 48)
    assert low == pytest.approx(1e-10)
    assert high == pytest.approx(1e6)


@pytest.mark.parametrize("side", [(256, 256), 256])
def test_a_defect_is_drawn_over_itself(tmp_path: Path, side: int | tuple[int, int]) -> None:
    """A white square in a corner of the crop: the hottest pixels of the overlay lie on it."""
    image = np.full((256, 256, 3), 60, dtype=np.uint8)
    image[20:50, 20:50] = 255
    Image.fromarray(image).save(tmp_path / "square.png")
    transform = Compose([Resize(side), CenterCrop(224)])
    cropped = transform(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    batch = ImageBatch(
        image=cropped,
        anomaly_map=(cropped[:, 0] > 0.9).float(),
        pred_mask=cropped[:, 0] > 0.9,
        image_path=[str(tmp_path / "square.png")],
    )
    visualizer = UncroppedVisualizer(
        fields=["image"],
        overlay_fields=[("image", ["anomaly_map"])],
        text_config={"enable": False},
        output_dir=tmp_path / "out",
    )
    model = SimpleNamespace(pre_processor=SimpleNamespace(transform=transform))
    visualizer.on_test_batch_end(SimpleNamespace(default_root_dir=tmp_path), model, batch, batch, 0)
    assert batch.anomaly_map.shape[-2:] == (224, 224)  # the batch itself is left as it was
    [path] = (tmp_path / "out").rglob("*.png")
    with Image.open(path) as drawn:
        overlay = np.asarray(drawn.convert("RGB"), dtype=float)[:, -256:]
    # red over blue is hot in anomalib's colours
    hot = overlay[..., 0] - overlay[..., 2]
    rows, columns = np.nonzero(hot > hot.max() / 2)
    assert abs(rows.mean() - 35) < 4
    assert abs(columns.mean() - 35) < 4


@pytest.mark.parametrize("crop", [CenterCrop, ExportableCenterCrop])
def test_a_crop_without_a_resize_is_of_the_image(crop: type) -> None:
    assert crop_margins(Compose([crop((64, 64))]), (96, 192)) == Margins(64, 64, 16, 16)
    assert crop_margins(Compose([Resize((80, 80)), crop((64, 64))])) == Margins(8, 8, 8, 8)


def test_no_picture_takes_the_place_of_another_images(tmp_path: Path) -> None:
    files = [tmp_path / place for place in ("a/good/1.png", "b/good/1.png", "b/good/2.png")]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(file)
    visualizer = UncroppedVisualizer(fields=["image"], overlay_fields=[], output_dir=tmp_path / "out")
    model = SimpleNamespace(pre_processor=SimpleNamespace(transform=None))
    batch = ImageBatch(
        image=torch.zeros(3, 3, 32, 32), anomaly_map=torch.zeros(3, 32, 32), image_path=[str(file) for file in files]
    )
    for _ in range(2):  # drawn again they are where they were
        visualizer.on_test_batch_end(SimpleNamespace(default_root_dir=tmp_path), model, batch, batch, 0)
        drawn = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.png")}
        assert set(drawn) == {"good/1.png", "b/good/1.png", "good/2.png"}
    assert b"good" not in pickle.dumps(visualizer)  # an export has no paths of images
    for name, red in (("good/1.png", 0), ("b/good/1.png", 80), ("good/2.png", 160)):
        with Image.open(drawn[name]) as picture:
            assert picture.convert("RGB").getpixel((16, 250))[0] == red


@pytest.mark.parametrize("size", [(1, 1), (40, 1)])
def test_an_image_of_one_row_is_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 0, 0)).save(tmp_path / "row.png")
    visualizer = UncroppedVisualizer(fields=["image"], overlay_fields=[], output_dir=tmp_path / "out")
    model = SimpleNamespace(pre_processor=SimpleNamespace(transform=None))
    batch = ImageBatch(
        image=torch.zeros(1, 3, 32, 32), anomaly_map=torch.zeros(1, 32, 32), image_path=[str(tmp_path / "row.png")]
    )
    visualizer.on_test_batch_end(SimpleNamespace(default_root_dir=tmp_path), model, batch, batch, 0)
    [path] = (tmp_path / "out").rglob("row.png")
    with Image.open(path) as picture:
        assert picture.convert("RGB").getpixel((16, 250))[0] == 200
