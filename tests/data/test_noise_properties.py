# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The draw of noise and its manifest for any names, numbers and seeds."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from anomalib_cdd.data.manifest import read_exclude_list, read_manifest, write_manifest
from anomalib_cdd.data.noise import draw, draw_split

# what UTF-8 can hold; NUL is in no file name
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
SETS = st.lists(NAMES, min_size=1, max_size=30, unique=True)
SEEDS = st.integers(0, 2**63)


@given(names=SETS, seed=SEEDS, shuffle=st.randoms(), data=st.data())
def test_a_draw_knows_the_names_and_the_seed_and_not_their_order_or_any_other_generator(
    names: list[str], seed: int, shuffle: random.Random, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(names)))
    drawn = draw(names, count, seed)
    state = random.getstate()
    shuffled = [*names]
    shuffle.shuffle(shuffled)
    assert draw(shuffled, count, seed) == drawn
    assert random.getstate() == state
    assert len(drawn) == len(set(drawn)) == count
    assert set(drawn) <= set(names)
    assert draw(names, len(names), seed)[:count] == drawn


@given(names=st.lists(NAMES, min_size=2, max_size=60, unique=True), cut=st.floats(0.1, 0.9), seed=SEEDS, data=st.data())
def test_a_split_keeps_every_normal_image_and_adds_the_stated_number(
    names: list[str], cut: float, seed: int, data: st.DataObject
) -> None:
    place = min(max(1, int(cut * len(names))), len(names) - 1)
    normal, anomalous = names[:place], names[place:]
    ratio = data.draw(st.floats(0, len(anomalous) / len(normal)))
    split = draw_split(normal, anomalous, ratio, seed)
    injected = {name for name, is_noise in split.items() if is_noise}
    assert list(split) == sorted(split)
    assert split.keys() - injected == set(normal)
    assert injected <= set(anomalous)
    assert len(injected) == int(ratio * len(normal))
    # no overlap: an anomalous image is in training or in the test set; together they are all
    assert len(injected) + len(set(anomalous) - injected) == len(anomalous)
    assert draw_split(normal[::-1], anomalous[::-1], ratio, seed) == split
    fewer = data.draw(st.integers(1, len(normal)))
    part = draw_split(normal, anomalous, ratio, seed, max_normal=fewer)
    assert sum(not is_noise for is_noise in part.values()) == fewer
    assert sum(part.values()) == int(ratio * fewer)


@given(split=st.dictionaries(NAMES, st.booleans(), min_size=1, max_size=20))
def test_any_split_comes_back_from_its_manifest(split: dict[str, bool]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.csv"
        write_manifest(path, split)
        assert read_manifest(path) == split
        assert read_exclude_list(path) == set(split)
