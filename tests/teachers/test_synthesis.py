# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies: where they are, what they are made of, and that they can be made again."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.data.utils.tiler import Tiler
from PIL import Image
from samples import make_sample, save
from torch import Tensor
from torchvision.transforms.v2 import Compose, Normalize, Resize
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_cdd.teachers.foreground import foreground_mask
from anomalib_cdd.teachers.synthesis import AnomalySynthesis

RED = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)


@pytest.fixture(autouse=True)
def _seed_of_the_run() -> None:
    torch.manual_seed(0)


def disc(size: int = 96) -> tuple[Tensor, Tensor]:
    """A woven disc on a plain light ground, and where it is."""
    weave = to_dtype(to_image(make_sample(1, size=size).image), torch.float32, scale=True)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 3) ** 2
    return torch.where(inside, 0.6 * weave, torch.full_like(weave, 0.9)), inside


def texture() -> Tensor:
    return to_dtype(to_image(make_sample(1).image), torch.float32, scale=True)


def overlap(found: Tensor, true: Tensor) -> float:
    return float((found & true).sum() / (found | true).sum())


@pytest.mark.parametrize("method", ["auto", "grabcut", "otsu"])
def test_the_object_is_found(method: str) -> None:
    image, inside = disc()
    assert overlap(foreground_mask(image, method), inside) > 0.85
    # a light object on a dark ground as well
    assert overlap(foreground_mask(1 - image, method), inside) > 0.85


@pytest.mark.parametrize(("height", "width"), [(0.2, 0.2), (0.4, 0.4), (0.15, 0.9)])
def test_an_object_that_leaves_part_of_the_centre_free_is_found(height: float, width: float) -> None:
    inside = torch.zeros(128, 128, dtype=torch.bool)
    rows, columns = (round(64 * share) for share in (height, width))
    inside[64 - rows : 64 + rows, 64 - columns : 64 + columns] = True
    image = torch.where(inside, 0.3, 0.85).expand(3, -1, -1) + 0.02 * torch.randn(3, 128, 128)
    assert overlap(foreground_mask(image, "auto"), inside) > 0.9


def test_a_texture_is_foreground_everywhere() -> None:
    assert foreground_mask(texture(), "auto").all()
    assert not foreground_mask(texture(), "otsu").all()
    assert foreground_mask(disc()[0], "none").all()
    # where light falls off towards the edges too
    dim = texture() * (1 - 0.8 * torch.linspace(-1, 1, texture().shape[-1]) ** 2)
    assert foreground_mask(dim, "auto").all()
    assert not foreground_mask(dim, "grabcut").all()


@pytest.mark.parametrize("method", ["auto", "grabcut", "otsu"])
@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_where_nothing_can_be_told_apart_the_foreground_is_everything(method: str, grey: float) -> None:
    assert foreground_mask(torch.full((3, 40, 70), grey), method).all()


def test_anomalies_lie_on_the_object_and_change_nothing_else() -> None:
    image, inside = disc()
    images = torch.stack([image] * 8)
    anomalous, masks = AnomalySynthesis(foreground="otsu")(images, [str(i) for i in range(8)])
    assert masks.shape == (8, 1, 96, 96)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert (masks.amax(dim=(1, 2, 3)) == 1).all()
    on_object = foreground_mask(image, "otsu")
    assert not (masks.bool() & ~on_object).any()
    assert torch.equal(anomalous * (1 - masks), images * (1 - masks))
    assert ((anomalous - images).abs().amax(dim=1, keepdim=True) * masks > 0.02).any()
    assert anomalous.min() >= 0
    assert anomalous.max() <= 1
    everywhere = AnomalySynthesis(foreground="none")(images, [str(i) for i in range(8)])[1]
    assert (everywhere.bool() & ~inside).any()


def test_the_same_epoch_gives_the_same_anomalies_whatever_was_drawn_before() -> None:
    images, names = torch.stack([texture()] * 4), ["a", "b", "c", "d"]
    first, masks = AnomalySynthesis()(images, names, epoch=3)
    torch.rand(7)
    state = torch.get_rng_state()
    again = AnomalySynthesis()(images, names, epoch=3)
    assert torch.equal(first, again[0])
    assert torch.equal(masks, again[1])
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are used up
    elsewhere = AnomalySynthesis()(images, [f"/folder/{name}" for name in names], epoch=3)
    assert torch.equal(first, elsewhere[0])
    # another epoch, another image and another seed of the run bring others
    others = [AnomalySynthesis()(images, names, epoch=4), AnomalySynthesis()(images, ["e", "f", "g", "h"], epoch=3)]
    torch.manual_seed(1)
    for other in (*others, AnomalySynthesis()(images, names, epoch=3)):
        assert not torch.equal(masks, other[1])
    assert not torch.equal(masks[0], masks[1])


def test_each_tile_of_a_batch_has_an_anomaly_of_its_own() -> None:
    image = texture()[:, :48, :48]
    tiler = Tiler(48, 48)
    batch = ImageBatch(image=image.repeat(2, 1, 1, 2), image_path=["a/1.png", "a/2.png"])
    tiles, anomalous, masks = AnomalySynthesis(foreground="none").of_batch(batch, tiler, 0, None)
    assert tiles.shape == anomalous.shape == (4, 3, 48, 48)
    assert all(torch.equal(tile, image) for tile in tiles)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4
    whole, _, masks = AnomalySynthesis(foreground="none").of_batch(batch, None, 0, None)
    assert torch.equal(whole, batch.image)
    assert masks.shape == (2, 1, 48, 96)


def test_the_foreground_of_a_tile_is_found_once_whatever_the_batch_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []

    def whole(image: Tensor, method: str) -> Tensor:
        del method
        found.append(image)
        return torch.ones(image.shape[-2:], dtype=torch.bool)

    monkeypatch.setattr("anomalib_cdd.teachers.synthesis.foreground_mask", whole)
    images, synthesis, tiler = torch.rand(3, 3, 48, 96), AnomalySynthesis(), Tiler(48, 48)
    for rows in ([0, 1, 2], [2, 0], [1]):
        batch = ImageBatch(image=images[rows], image_path=[f"{row}.png" for row in rows])
        synthesis.of_batch(batch, tiler, 0, None)
    assert len(found) == 6


def test_beta_is_the_images_weight() -> None:
    images = torch.stack([texture()] * 4)
    names = [str(i) for i in range(4)]
    unchanged, masks = AnomalySynthesis(beta=(1.0, 1.0))(images, names)
    assert masks.any()
    assert torch.allclose(unchanged, images, atol=1e-6)
    changed = [
        float((AnomalySynthesis(beta=(weight, weight))(images, names)[0] - images).abs().sum()) for weight in (0.0, 0.5)
    ]
    assert changed[0] == pytest.approx(2 * changed[1], rel=1e-3)


def test_two_masks_are_joined_or_intersected() -> None:
    images, names = torch.full((40, 3, 64, 64), 0.5), [str(i) for i in range(40)]
    one, two = (
        AnomalySynthesis(foreground="none", two_masks=both)(images, names)[1].mean(dim=(1, 2, 3))
        for both in (False, True)
    )
    # one time in two each: unions are larger than a mask, intersections of two sparse ones much smaller
    assert two.quantile(0.75) > 1.3 * one.median()
    assert two.quantile(0.25) < 0.3 * one.quantile(0.25)
    assert 0.3 < (two < one.min() / 2).float().mean() < 0.7


def test_textures_come_from_the_folder(tmp_path: Path) -> None:
    save(Image.new("RGB", (30, 50), (255, 0, 0)), tmp_path / "deep" / "red.png")
    save(Image.new("RGB", (30, 50), (255, 0, 0)), tmp_path / "red.jpg")
    grey = torch.full((6, 3, 48, 48), 0.5)
    names = [str(i) for i in range(6)]
    anomalous, masks = AnomalySynthesis(str(tmp_path), "none", beta=(0.0, 0.0))(grey, names)
    # one colour, augmented: noise has many, and a patch of another image would be grey
    inside = [image[:, mask[0].bool()] for image, mask in zip(anomalous, masks, strict=True)]
    assert np.median([float(pixels.std(dim=1, unbiased=False).max()) for pixels in inside]) < 1e-3
    assert np.median([float(pixels.std(dim=0).max()) for pixels in inside]) > 0.1


def test_without_a_folder_textures_are_patches_of_other_images_or_noise() -> None:
    images = torch.cat([torch.zeros(1, 3, 64, 64), RED.expand(1, 3, 64, 64)])
    kinds = set()
    for epoch in range(12):
        anomalous, masks = AnomalySynthesis(foreground="none", beta=(0.0, 0.0))(images, ["black", "red"], epoch)
        pixels = anomalous[0].permute(1, 2, 0)[masks[0, 0].bool()]
        if len(pixels) > 20:
            kinds.add("patch" if pixels.std(dim=0).max() < 1e-3 else "noise")
    assert kinds == {"patch", "noise"}
    alone, masks = AnomalySynthesis(foreground="none", beta=(0.0, 0.0))(images[:1], ["black"])
    assert ((alone - images[:1]).abs() * masks).max() > 0.1


def test_normalised_images_stay_so() -> None:
    steps = Compose([Resize((48, 48)), Normalize(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25])])
    plain = Resize((48, 48))(torch.stack([texture()] * 3))
    normalised, names = steps(torch.stack([texture()] * 3)), ["a", "b", "c"]
    expected, masks = AnomalySynthesis()(plain, names)
    anomalous, same = AnomalySynthesis()(normalised, names, transform=steps)
    assert torch.equal(masks, same)
    assert torch.allclose(anomalous, steps.transforms[1](expected), atol=1e-5)
    assert torch.equal(anomalous * (1 - masks), normalised * (1 - masks))


def test_a_foreground_is_found_once_an_image() -> None:
    image, _ = disc(256)
    images, names = image[None], ["a"]
    synthesis = AnomalySynthesis(foreground="grabcut")
    started = time.perf_counter()
    synthesis(images, names)
    first = time.perf_counter() - started
    started = time.perf_counter()
    synthesis(images, names, epoch=1)
    assert time.perf_counter() - started < first / 2
    # an image that has changed, as augmentations do, is looked at again
    moved = images.roll(60, dims=3)
    masks = [synthesis(moved, names, epoch)[1] for epoch in range(5)]
    assert not (torch.cat(masks).bool() & ~foreground_mask(moved[0], "grabcut")).any()


@pytest.mark.parametrize("count", [1, 2])
def test_a_foreground_of_a_pixel_gives_an_empty_mask_and_the_image_itself(count: int) -> None:
    image = torch.full((3, 64, 64), 0.2)
    image[:, 32, 32] = 1.0
    images = image.repeat(count, 1, 1, 1)
    anomalous, masks = AnomalySynthesis(foreground="otsu")(images, [str(i) for i in range(count)])
    assert masks.sum() <= count
    assert torch.equal(anomalous * (1 - masks), images * (1 - masks))


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        AnomalySynthesis(str(tmp_path / "nowhere"), "none")(torch.rand(4, 3, 32, 32))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="has no images"):
        AnomalySynthesis(str(tmp_path), "none")(torch.rand(4, 3, 32, 32))
    with pytest.raises(ValueError, match=r"beta is \(0\.5, 1\.5\)"):
        AnomalySynthesis(beta=(0.5, 1.5))
    with pytest.raises(ValueError, match="foreground is 'Otsu'; it has to be one of auto, grabcut, otsu, none"):
        AnomalySynthesis(foreground="Otsu")
    with pytest.raises(ValueError, match="of 16 x 40 pixels"):
        AnomalySynthesis()(torch.rand(1, 3, 16, 40))
    AnomalySynthesis()(torch.rand(1, 3, 17, 40))
    (tmp_path / "broken.png").write_bytes(b"no image either")
    with pytest.raises(ValueError, match=r"cannot read the image .*broken\.png"):
        AnomalySynthesis(str(tmp_path), "none")(torch.rand(4, 3, 32, 32))


def test_making_one_leaves_the_seeds_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.random.get_rng_state()
    AnomalySynthesis()
    assert seeded == []
    assert torch.equal(torch.random.get_rng_state(), before)
