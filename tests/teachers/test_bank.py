# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Nearest patches and their weights, worked out by hand; memory in chunks changes nothing."""

import pytest
import torch
from anomalib.data.utils.tiler import Tiler

from anomalib_cdd.teachers import bank as banks
from anomalib_cdd.teachers.bank import PatchBank, nearest
from anomalib_cdd.teachers.mixing import channel_pooling, in_tiles
from anomalib_cdd.teachers.patches import coreset


def test_the_nearest_patch_and_its_weight_make_the_distance() -> None:
    bank = PatchBank(sigma=4)
    bank.fill(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), weights=torch.tensor([1.0, 3.0]))
    # (3, 3) is 1 from (3, 4), whose weight is 3; (0, 2) is 4 from (0, 0)
    queries = torch.tensor([[3.0, 3.0], [0.0, 2.0]])
    assert bank.distances(queries).tolist() == pytest.approx([3.0, 4.0])
    # without the second patch (3, 3) is 18 from (0, 0)
    assert bank.distances(queries, torch.tensor([True, False])).tolist() == pytest.approx([18.0, 4.0])
    assert bank.distances(queries, torch.tensor([False, False])).isinf().all()


def test_chunks_find_what_one_product_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(23, 5, generator=generator), torch.randn(31, 5, generator=generator)
    allowed = torch.rand(31, generator=generator) < 0.7
    whole = nearest(queries, bank, allowed)
    exact = torch.cdist(queries, bank).square().masked_fill(~allowed, torch.inf)
    assert torch.allclose(whole[0], exact.amin(dim=1), atol=1e-5)
    assert torch.equal(whole[1], exact.argmin(dim=1))
    monkeypatch.setattr(banks, "BANK_CHUNK", 7)
    monkeypatch.setattr(banks, "QUERY_CHUNK", 4)
    parts = nearest(queries, bank, allowed)
    assert torch.allclose(parts[0], whole[0], atol=1e-5)
    assert torch.equal(parts[1], whole[1])


def test_a_distance_of_the_scale_becomes_one_half_and_order_is_kept() -> None:
    bank = PatchBank(sigma=4)
    bank.scale.fill_(50.0)
    maps = bank.anomaly_map(torch.tensor([0.0, 50.0, 1000.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8), (64, 64))
    assert torch.allclose(maps.amax(dim=(1, 2, 3)), torch.tensor([0.0, 0.5, 1000 / 1050]), atol=1e-5)


def test_an_empty_bank_says_so() -> None:
    with pytest.raises(ValueError, match=r"memory bank is empty\. Fit the model first"):
        PatchBank(sigma=4).distances(torch.zeros(1, 2))


def test_pooling_averages_neighbouring_channels() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    assert (channel_pooling(4, 2) @ values).tolist() == [2.0, 6.0]
    assert (channel_pooling(4, 9) @ values).tolist() == values.tolist()


def test_a_coreset_takes_no_patch_twice() -> None:
    assert sorted(coreset(torch.zeros(5, 3), 5).tolist()) == [0, 1, 2, 3, 4]


def test_tiles_make_the_grid_of_the_whole_image() -> None:
    images = torch.arange(2 * 3 * 40 * 64, dtype=torch.float32).view(2, 3, 40, 64)

    def corners(tiles: torch.Tensor) -> torch.Tensor:
        return tiles[..., ::8, ::8]

    # the last row of tiles is filled up
    found = in_tiles(Tiler(tile_size=32, stride=16), images, corners, stride=8)
    assert torch.equal(found, corners(images))
    with pytest.raises(ValueError, match="multiples of 8"):
        in_tiles(Tiler(tile_size=20, stride=20), images, corners, stride=8)
