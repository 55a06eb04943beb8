# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A training may be killed or interrupted at any moment: it is resumed, ends as if nothing had been, leaves nothing.

One thread computes the same bits every time, so that *the same* means equal here.
"""

import itertools
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nursery import EPOCHS, Moment, Nursery

# what a training comes to, and how often at most in an epoch
PLACES = {
    "cache": 4,
    "allocation": 1,
    "recall": 1,
    "domain": 6,
    "targets": 1,
    "global": 6,
    "confident": 2,
    "validation": 3,
    "checkpoint": 1,
    "half a checkpoint": 1,
    "rename": 1,
    "end": 1,
    "start": 1,
}
SOON = 30  # seconds; a few are enough, beside other work too, and what waits for a dead process waits for ever


@pytest.fixture(scope="module")
def nursery(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(mvtec_root, tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def whole(nursery: Nursery) -> dict:
    """What a training ends in that nobody disturbs."""
    life = nursery.live("whole")
    assert life.status == 0, life.output
    assert len(final(nursery, "whole")["history"]["cross_domain"]) == EPOCHS
    return final(nursery, "whole")


def final(nursery: Nursery, name: str) -> dict:
    return torch.load(nursery.folder / name / "final.pt", weights_only=True)


def assert_same(one: dict, other: dict) -> None:
    assert one["history"]["image_paths"] == other["history"]["image_paths"]
    for part in ("cross_domain", "scale"):
        for first, second in zip(one["history"][part], other["history"][part], strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=0)


def moments(rng: random.Random) -> Iterator[Moment]:
    """Every place in turn, in random order, within two epochs, and up to 30 ms later."""
    while True:
        for place in rng.sample(list(PLACES), len(PLACES)):
            times = 0 if place in {"cache", "end", "start"} else rng.choice([0, 1, 1]) * PLACES[place]
            delay = rng.choice([0.0, rng.uniform(0, 1.5 if place == "start" else 0.03)])
            yield Moment(place, times + rng.randint(1, PLACES[place]), round(delay, 3))


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_however_often_it_is_killed_it_ends_as_if_nothing_had_been(nursery: Nursery, whole: dict, kills: int) -> None:
    killed, lives, chain, resumed = [], 0, 0, 0
    # the first one in the second epoch, so that even a short soak resumes
    moment = itertools.chain([Moment("domain", 12)], moments(random.Random(kills)))
    while len(killed) < kills:
        # a training from its beginning to its end, in as many lives as it takes
        chain += 1
        status = None
        while status != 0:
            lives += 1
            name = f"soak{kills}-{chain}-{lives}"
            ckpt = nursery.checkpoint(f"soak{kills}-{chain}-")
            at = next(moment) if len(killed) < kills else None
            life = nursery.live(name, ckpt, at, signal=signal.SIGKILL)
            status = life.status
            resumed += ckpt is not None
            print(f"{name} from {ckpt and ckpt.parents[5].name}: {at} -> {status} in {life.seconds:.1f} s")
            assert status in {0, -signal.SIGKILL}, life.output
            assert not any(nursery.cache.glob("*"))
            if status:
                killed.append(at)
        assert_same(final(nursery, name), whole)
    assert len({at.place for at in killed}) >= min(kills - 1, len(PLACES))
    assert resumed >= kills // 3


@pytest.mark.parametrize(
    ("name", "options"),
    [("forked", {"domain_students": "forked"}), ("default", {"domain_interval": 2, "max_confident": 0.0})],
)
def test_killed_and_resumed_other_trainings_end_as_if_nothing_had_been(
    nursery: Nursery, name: str, options: dict
) -> None:
    """Killed within the fourth epoch, of an interval of 2 one in which no domain student learns."""
    assert nursery.live(f"{name}-whole", model=options).status == 0
    within = Moment("global", 3 * 4 + 2)  # an epoch has four steps
    life = nursery.live(f"{name}-killed", None, within, signal=signal.SIGKILL, model=options)
    assert life.status == -signal.SIGKILL, life.output
    ckpt = nursery.checkpoint(f"{name}-killed")
    assert torch.load(ckpt, weights_only=True)["epoch"] == 2
    life = nursery.live(f"{name}-resumed", ckpt, model=options)
    assert life.status == 0, life.output
    assert_same(final(nursery, f"{name}-resumed"), final(nursery, f"{name}-whole"))


def test_ctrl_c_in_every_stage_ends_it_soon_and_keeps_the_last_checkpoint(nursery: Nursery, whole: dict) -> None:
    ckpt = None
    for place in ("cache", "recall", "domain", "targets", "global", "confident", "validation"):
        # the second one comes after an epoch, so that there is something to lose
        count = 2 if place in {"cache", "recall", "global"} else 1
        life = nursery.live(f"interrupted-{place}", ckpt, Moment(place, count), signal=signal.SIGINT)
        assert life.status == 1
        assert "Detected KeyboardInterrupt" in life.output
        assert life.seconds < SOON
        assert not any(nursery.cache.glob("*"))
        last = nursery.checkpoint("interrupted-")
        assert (last != ckpt) == (place == "recall")
        ckpt = last
    assert torch.load(ckpt, weights_only=True)["epoch"] == 0
    life = nursery.live("interrupted-last", ckpt)
    assert life.status == 0, life.output
    assert_same(final(nursery, "interrupted-last"), whole)


@pytest.mark.parametrize(
    ("cache", "place"),
    [(True, "cache"), (False, "recall asks"), (False, "domain"), (False, "global"), (True, "validation")],
)
def test_dead_loader_workers_end_it_soon_with_an_error(nursery: Nursery, cache: bool, place: str) -> None:
    name = f"workers-{cache}-{place}"
    # eight batches: the workers are at work still
    options = {"model": {"cache": cache}, "data": {"num_workers": 2, "train_batch_size": 2, "eval_batch_size": 1}}
    life = nursery.live(name, None, Moment(place, 2 if place == "validation" else 1), signal="workers", **options)
    # with the cache off the trainer's own loader has two more
    assert re.search("killing [24] workers", life.output)
    assert life.status == 3
    assert life.seconds < SOON
    # "RuntimeError: DataLoader worker", or the connection's own where one died while it handed a batch over
    assert re.search(r"^\w*Error: ", life.output, re.MULTILINE)
    assert not any(nursery.cache.glob("*"))


def test_two_trainings_share_a_cache_folder_without_harm(nursery: Nursery, whole: dict) -> None:
    other = {"data": {"noise_seed": 1}, "model": {"seed": 1}}
    assert nursery.live("other alone", **other).status == 0
    nursery.start("one of two")
    nursery.start("other of two", **other)
    assert {life.status for life in nursery.wait().values()} == {0}
    assert_same(final(nursery, "one of two"), whole)
    assert_same(final(nursery, "other of two"), final(nursery, "other alone"))
    assert not torch.equal(final(nursery, "other of two")["scores"], whole["scores"])
    assert not any(nursery.cache.glob("*"))
