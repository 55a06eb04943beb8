# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules and partition against values worked out by hand."""

from types import SimpleNamespace

import pytest
import torch

from anomalib_cdd.models.cdd.domains import (
    Domains,
    batches,
    confident_count,
    domain_count,
    draw_folds,
    epoch_generator,
    partition,
    plan_epoch,
    regularization_weight,
    visits_of,
)

OPTIONS = {
    "warmup_epochs": 0,
    "pseudo_normal": True,
    "confidence_guidance": True,
    "confident_distillation": True,
    "domain_construction": True,
    "domains": (2,),
    "domain_students": "persistent",
    "domain_interval": 1,
    "selection": "consensual",
    "max_confident": 0.0,
    "regularization": 0.0,
}


def test_schedule_gives_each_entry_an_equal_share() -> None:
    assert [domain_count(e, 8, (2, 3, 3, 2)) for e in range(8)] == [2, 2, 3, 3, 3, 3, 2, 2]
    # 5 epochs, floor(4 e / 5) = 0 0 1 2 3
    assert [domain_count(e, 5, (2, 3, 4, 5)) for e in range(5)] == [2, 2, 3, 4, 5]
    assert domain_count(0, 1, (2, 3, 3, 2)) == 2


def test_confident_share_grows_with_the_epoch_up_to_its_maximum() -> None:
    # floor(min(e / 10, 0.5) * 15): 0, 1.5, 3, 4.5, 6, 7.5, 7.5 ...
    assert [confident_count(e, 10, 15, 0.5) for e in range(10)] == [0, 1, 3, 4, 6, 7, 7, 7, 7, 7]
    assert confident_count(29, 100, 100, 0.5) == 29  # 0.29 * 100 is 28.999... in floating point
    assert confident_count(9, 10, 100, 0.7) == 70
    assert confident_count(9, 10, 100, 0.0) == 0


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.0), (1, 0.25**4 / (0.25**4 + 0.75**4)), (2, 0.5), (3, 81 / 82)],
)
def test_regularization_follows_the_s_curve(epoch: int, expected: float) -> None:
    assert regularization_weight(epoch, 4, "s-curve") == pytest.approx(expected)


def test_regularization_linear_and_constant() -> None:
    assert regularization_weight(1, 4, "linear") == 0.25
    assert [regularization_weight(e, 4, 1.0) for e in range(4)] == [1.0] * 4
    assert regularization_weight(3, 4, 0) == 0.0


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("images", "confident", "count"), [(11, 4, 3), (10, 0, 2), (7, 7, 2), (23, 5, 4)])
def test_partition_is_disjoint_complete_and_even(images: int, confident: int, count: int, shared: bool) -> None:
    confidence = torch.rand(images, generator=torch.Generator().manual_seed(images))
    domains = partition(confidence, confident, count, torch.Generator().manual_seed(1), shared)
    dealt = torch.cat(domains.parts).tolist()
    everyone = dealt + domains.confident.tolist() if shared else dealt
    assert sorted(everyone) == list(range(images))
    sizes = [len(part) for part in domains.parts]
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert set(domains.confident.tolist()) == set(confidence.topk(confident).indices.tolist())
    for k in range(count):
        inside = set(domains.domain(k).tolist())
        assert len(inside) == len(domains.domain(k))
        if shared:
            assert set(domains.confident.tolist()) <= inside


def test_what_shows_the_same_is_dealt_together() -> None:
    shows = torch.tensor([0, 1, 0, 3, 4, 4, 6, 4])
    plan = plan_epoch(0, 10, len(shows), SimpleNamespace(**OPTIONS, confident_patches=0.95))
    for seed in range(5):
        folds = draw_folds(shows, plan, seed)
        assert sorted(torch.cat(folds).tolist()) == list(range(8))
        things = [set(shows[fold].tolist()) for fold in folds]
        assert not things[0] & things[1]
        assert {len(each) for each in things} == {2, 3}
        domains = partition(torch.rand(8), 0, 2, epoch_generator(seed, 3), shows=shows)
        assert not set(shows[domains.parts[0]].tolist()) & set(shows[domains.parts[1]].tolist())
    # one thing alone cannot be kept together
    assert [len(fold) for fold in draw_folds(torch.zeros(4, dtype=torch.long), plan, 0)] == [2, 2]


def test_confident_images_are_the_surest_in_order() -> None:
    domains = partition(torch.tensor([0.1, 2.9, 0.5, 2.9, 1.0]), 3, 2, torch.Generator().manual_seed(0))
    assert domains.confident.tolist() == [1, 3, 4]


def test_partition_is_fresh_every_epoch_and_the_same_after_a_resume() -> None:
    confidence = torch.zeros(40)
    draw = [partition(confidence, 0, 2, epoch_generator(3, e)).parts[0].tolist() for e in (0, 1, 0)]
    assert draw[0] == draw[2]
    assert set(draw[0]) != set(draw[1])
    assert draw[0] != partition(confidence, 0, 2, epoch_generator(4, 0)).parts[0].tolist()


def test_batches_hold_every_index_once_and_drop_a_last_one_alone() -> None:
    shuffled = batches(torch.arange(9), 4, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in shuffled] == [4, 4]
    assert len(set(torch.cat(shuffled).tolist())) == 8
    assert [len(batch) for batch in batches(torch.arange(10), 4, torch.Generator().manual_seed(0))] == [4, 4, 2]
    assert torch.cat(batches(torch.arange(9), 4)).tolist() == list(range(9))
    assert batches(torch.arange(0), 4) == []
    assert batches(torch.arange(0), 4, torch.Generator()) == []


def test_visits_are_those_of_every_domain() -> None:
    domains = Domains(torch.tensor([4, 2]), (torch.tensor([0, 3]), torch.tensor([1])), shared=True)
    each = visits_of(domains)
    for k in range(2):
        assert sorted(each[each[:, 1] == k, 0].tolist()) == sorted(domains.domain(k).tolist())
    assert len(each) == 2 * 2 + 3
    assert visits_of(domains, once=True).tolist() == [[0, 0], [3, 0], [1, 1], [4, -1], [2, -1]]
    # in turn: no domain is left out more often than another
    assert visits_of(domains, once=True, dealt=True).tolist()[3:] == [[4, 0], [2, 1]]
    apart = Domains(torch.tensor([4]), (torch.tensor([0, 4]), torch.tensor([1])), shared=False)
    assert visits_of(apart).tolist() == [[0, 0], [4, 0], [1, 1]]


@pytest.mark.parametrize(
    ("changed", "learns"),
    [
        ({}, [1, 0, 1, 0, 1, 0, 1, 0]),
        ({"domain_interval": 1}, [1] * 8),
        ({"domain_interval": 3}, [1, 0, 0, 1, 0, 0, 1, 0]),
        # anew with every K, after the warm-up
        ({"domains": (2, 3), "domain_interval": 3}, [1, 0, 0, 1, 1, 0, 0, 1]),
        ({"warmup_epochs": 3}, [0, 0, 0, 1, 0, 1, 0, 1]),
        ({"domain_students": "forked"}, [1] * 8),
        ({"domain_students": 0.5}, [1, 0, 1, 0, 1, 1, 1, 1]),
        ({"pseudo_normal": False}, [0] * 8),
    ],
)
def test_persistent_students_learn_in_every_nth_epoch(changed: dict, learns: list[int]) -> None:
    options = SimpleNamespace(**OPTIONS | {"domain_interval": 2} | changed)
    assert [plan_epoch(epoch, 8, 20, options).learns for epoch in range(8)] == [bool(each) for each in learns]


@pytest.mark.parametrize(
    ("changed", "asked"),
    [
        ({}, False),
        ({"max_confident": 0.5}, True),
        ({"max_confident": 0.5, "confidence_guidance": False, "confident_distillation": False}, False),
        ({"regularization": "s-curve"}, True),
        ({"domains": (3,)}, True),
        ({"domains": (3,), "selection": "next"}, False),
        ({"regularization": 1.0, "pseudo_normal": False}, False),
    ],
)
def test_the_previous_student_is_asked_where_something_reads_its_answers(changed: dict, asked: bool) -> None:
    plan = plan_epoch(2, 10, 20, SimpleNamespace(**OPTIONS | changed))
    assert plan.recalls == asked
