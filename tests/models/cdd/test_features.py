# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A feature cache on disk has no name: nothing is left of it, and no later run, or another one, can read it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalib_cdd.models.cdd.features import FeatureBudget, FeatureCache

SHAPES = [(2, 3, 4), (7, 1, 1)]


def filled(value: float, directory: Path) -> FeatureCache:
    cache = FeatureBudget(0, directory).cache(3, SHAPES, torch.float16)
    cache.write(torch.arange(3), [torch.full((3, *shape), value) for shape in SHAPES])
    return cache


def test_at_no_moment_has_it_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate, seen = os.posix_fallocate, []

    def watched(*args: Any) -> None:
        seen.append(list(tmp_path.iterdir()))
        allocate(*args)
        seen.append(list(tmp_path.iterdir()))

    monkeypatch.setattr(os, "posix_fallocate", watched)
    cache = filled(1.0, tmp_path)
    seen.append(list(tmp_path.iterdir()))
    cache.release()
    assert seen == [[], [], []]


def test_files_that_lie_there_are_neither_read_nor_touched_and_two_caches_do_not_meet(tmp_path: Path) -> None:
    foreign = tmp_path / "anomalib_cdd_foreign"
    foreign.write_bytes(b"\xff" * 10_000)
    one, other = filled(1.0, tmp_path), filled(2.0, tmp_path)
    for cache, value in ((one, 1.0), (other, 2.0)):
        assert all(level.eq(value).all() for level in cache.read(torch.arange(3)))
    one.release()
    assert all(level.eq(2.0).all() for level in other.read(torch.arange(3)))
    assert foreign.read_bytes() == b"\xff" * 10_000
    assert list(tmp_path.iterdir()) == [foreign]


def test_its_room_comes_back(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("Linux alone says which files are open")

    def open_files() -> int:
        # the listing's own descriptor is gone by the time it is asked for
        return sum("(deleted)" in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())

    before = open_files()
    caches = [filled(1.0, tmp_path) for _ in range(5)]
    assert open_files() == before + 5
    for cache in caches:
        cache.release()
    assert open_files() == before


def test_levels_come_as_they_are_kept_under_autocast_and_lie_as_networks_want_them() -> None:
    shapes = [(6, 4, 4), (8, 2, 2)]
    cache = FeatureCache(3, shapes, torch.float16)
    levels = [torch.randn(3, *shape) for shape in shapes]
    cache.write(torch.arange(3), levels)
    order = torch.tensor([2, 0])
    plain = cache.read(order)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = cache.read(order)
    for level, half, single in zip(levels, kept, plain, strict=True):
        assert (half.dtype, single.dtype) == (torch.float16, torch.float32)
        assert torch.equal(half, level[order].half())
        assert torch.equal(single, half.float())
        for read in (half, single):
            assert read.is_contiguous(memory_format=torch.channels_last)
