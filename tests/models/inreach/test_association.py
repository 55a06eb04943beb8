# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Mutual neighbours, channels and the five-sigma rule, worked out by hand."""

import pytest
import torch

from anomalib_cdd.models.inreach.association import (
    associate,
    is_aligned,
    joined,
    large_channels,
    squared_to_mean,
    within_spread,
)
from anomalib_cdd.teachers.bank import squared_distances


def on_a_line(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_a_patch_joins_the_nearest_seed_patch_if_both_are_mutual() -> None:
    patches = on_a_line(0.0, 1.0)
    first, second = on_a_line(0.9, 10.0), on_a_line(0.1, 50.0)
    # both are nearest to 0.9, to which 1 is the nearest
    channels, joins = joined(patches, first[None])
    assert channels.tolist() == [0, 0]
    assert joins.tolist() == [False, True]
    # the second seed has a patch nearer to 0, and mutual
    channels, joins = joined(patches, torch.stack([first, second]))
    assert channels.tolist() == [2, 0]
    assert joins.tolist() == [True, True]
    # an image does not join itself
    assert joined(patches, torch.stack([first, second]), own=1)[1].tolist() == [False, True]


def test_a_patch_whose_nearest_seed_is_not_mutual_does_not_fall_back_on_another() -> None:
    # 0 is nearer to 0.9 than to -3, which would be mutual
    _, joins = joined(on_a_line(0.0, 1.0), torch.stack([on_a_line(0.9), on_a_line(-3.0)]))
    assert joins.tolist() == [False, True]


def test_channels_have_their_seed_and_all_that_joined() -> None:
    images = [on_a_line(0.0, 10.0), on_a_line(0.1, 19.0), on_a_line(-0.1, 10.2)]
    members = associate(images.__getitem__, seeds=[0], images=range(3))
    found = set(zip(*(field.tolist() for field in members), strict=True))
    # image, patch, channel: 10 is mutual with 10.2 of the third image and with 19 of the second
    assert found == {(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 1)}
    # channel 1 has 10, 19 and 10.2: mean 39.2 / 3
    squared = dict(
        zip(
            zip(members.images.tolist(), members.patches.tolist(), strict=True),
            squared_to_mean(members, images.__getitem__).tolist(),
            strict=True,
        )
    )
    assert squared[0, 1] == pytest.approx((39.2 / 3 - 10) ** 2, rel=1e-4)
    assert squared[1, 1] == pytest.approx((19 - 39.2 / 3) ** 2, rel=1e-4)


def test_a_channel_needs_more_than_three_members() -> None:
    channels = torch.tensor([0, 2, 0, 2, 0, 2, 0])
    assert large_channels(channels, 3).tolist() == [True, False, True, False, True, False, True]


@pytest.mark.parametrize(("outlier", "stays"), [(144.0, True), (146.0, False)])
def test_a_member_at_five_sigma_leaves(outlier: float, stays: bool) -> None:
    # of 29 squared distances of 1 and one of x the mean is (29 + x) / 30; x is 25 times that at 145
    squared = torch.tensor([1.0] * 29 + [outlier])
    assert within_spread(squared, torch.zeros(30, dtype=torch.long), 5.0).tolist() == [True] * 29 + [stays]


def test_a_channel_of_twins_keeps_them() -> None:
    assert within_spread(torch.zeros(4), torch.zeros(4, dtype=torch.long), 5.0).all()


def test_an_image_that_differs_from_its_transpose_is_aligned() -> None:
    image = torch.zeros(3, 8, 8)
    assert not is_aligned(image, 1000)
    image[:, :, 4:] = 255  # half of the pixels differ by 255
    assert is_aligned(image, 255**2 / 2 - 1)
    assert not is_aligned(image, 255**2 / 2 + 1)
    assert is_aligned(image[:, :6], 1000)


def test_in_parts_the_same_patches_join(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    patches, seeds = torch.rand(50, 3, generator=generator), torch.rand(2, 40, 3, generator=generator)
    whole = joined(patches, seeds)
    sizes: list[int] = []
    real = squared_distances

    def watched(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        sizes.append(len(first) * len(second))
        return real(first, second)

    monkeypatch.setattr("anomalib_cdd.models.inreach.association.squared_distances", watched)
    monkeypatch.setattr("anomalib_cdd.models.inreach.association.WORK_SPACE", 300)
    assert all(torch.equal(one, other) for one, other in zip(joined(patches, seeds), whole, strict=True))
    assert max(sizes) <= 300
