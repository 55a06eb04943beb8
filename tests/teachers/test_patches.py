# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Patches, their distances image by image, and the coreset of one image."""

import pytest
import torch

from anomalib_cdd.teachers.patches import (
    PatchExtractor,
    cell_means,
    coreset,
    join_levels,
    nearest_distances,
    random_projection,
)


def test_levels_are_averaged_and_joined_on_the_finer_grid() -> None:
    fine, coarse = torch.zeros(1, 1, 4, 4), torch.full((1, 2, 2, 2), 9.0)
    fine[0, 0, 1, 1] = 9
    joined = join_levels([fine, coarse])
    assert joined.shape == (1, 3, 4, 4)
    assert joined[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    # at a border zeros count, as in Patchcore
    assert torch.allclose(joined[0, 1], torch.tensor(4.0))


def test_default_levels_are_those_at_strides_8_and_16() -> None:
    default = PatchExtractor("test_resnet", pre_trained=False)
    named = PatchExtractor("test_resnet", ["layer2", "layer3"], pre_trained=False)
    assert default.channels == named.channels
    images = torch.zeros(2, 3, 64, 64)
    assert default(images).shape == named(images).shape == (2, named.channels, 8, 8)


def test_nearest_distances_are_those_of_each_image() -> None:
    patches = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    references = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [6.0, 8.0]]])
    # (3, 4) is 4 away from (3, 0), and 18 ** .5 from (0, 1)
    expected = torch.tensor([[1.0, 5.0], [4.0, 0.0]])
    assert torch.allclose(nearest_distances(patches, references), expected, atol=1e-3)


@pytest.mark.parametrize("size", [3, 300, 3000])
def test_blocks_of_any_size_give_what_one_matrix_gives(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(1500, 8, generator=generator)
    references = torch.randn(5, size, 8, generator=generator)
    expected = torch.cdist(patches, references.flatten(0, 1)).view(1500, 5, size).amin(dim=-1)
    assert torch.allclose(nearest_distances(patches, references), expected, atol=1e-3)


def test_a_projection_keeps_distances_and_is_always_the_same() -> None:
    patches = torch.randn(50, 900, generator=torch.Generator().manual_seed(1))
    matrix = random_projection(900, 192)
    ratios = torch.pdist(patches @ matrix) / torch.pdist(patches)
    assert 0.75 < ratios.min() < ratios.max() < 1.25
    assert torch.equal(matrix, random_projection(900, 192))
    assert torch.equal(random_projection(100, 192), torch.eye(100))


def test_a_coreset_takes_the_middle_then_the_farthest() -> None:
    # mean 3.5: nearest 3; then 10 (7 away), then 0 (3 away)
    patches = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    assert coreset(patches, 3).tolist() == [2, 3, 0]


def test_each_patch_of_a_coreset_gives_way_to_the_mean_of_those_it_stands_for() -> None:
    # 1 is nearest to 0, and 3 and 10 are alone
    patches = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    assert cell_means(patches, torch.tensor([2, 3, 0])).tolist() == [[3.0], [10.0], [0.5]]
    # more asked for than there are different ones
    assert cell_means(torch.tensor([[4.0], [4.0], [5.0]]), torch.tensor([0, 2, 1])).tolist() == [[4.0], [5.0], [4.0]]
