# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules, partition, visits and batches for any numbers of epochs, images and domains."""

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Generator

from anomalib_cdd.models.cdd.domains import (
    Domains,
    batch_count,
    batches,
    confident_count,
    domain_count,
    epoch_generator,
    partition,
    regularization_weight,
    visits_of,
)

SCHEDULES = st.lists(st.integers(2, 9), min_size=1, max_size=8).map(tuple)
SEEDS = st.integers(0, 2**31)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[torch.Tensor, Domains]:
    """Confidences, ties among them, and the domains they give."""
    confidence = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.5, 3.0]), min_size=1, max_size=60))
    confident = draw(st.integers(0, len(confidence)))
    count, shared = draw(st.integers(1, 6)), draw(st.booleans())
    values = torch.tensor(confidence)
    return values, partition(values, confident, count, Generator().manual_seed(draw(SEEDS)), shared)


@given(schedule=SCHEDULES, epochs=st.integers(1, 300))
def test_every_entry_of_the_schedule_has_its_turn_in_order_and_an_equal_share(schedule: tuple, epochs: int) -> None:
    counts = [domain_count(e, epochs, tuple(range(len(schedule)))) for e in range(epochs)]
    assert counts == sorted(counts)
    shares = [counts.count(entry) for entry in range(len(schedule))]
    assert max(shares) - min(shares) <= 1
    assert [domain_count(e, epochs, schedule) for e in range(epochs)] == [schedule[entry] for entry in counts]


@given(epochs=st.integers(1, 300), images=st.integers(1, 5000), hundredths=st.integers(0, 100))
def test_confident_images_grow_in_number_to_the_stated_share_and_no_further(
    epochs: int, images: int, hundredths: int
) -> None:
    counts = [confident_count(e, epochs, images, hundredths / 100) for e in range(epochs)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    # in whole numbers, where 0.29 * 100 is 29
    assert counts == [min(e * images // epochs, hundredths * images // 100) for e in range(epochs)]


@given(epochs=st.integers(1, 300), constant=st.floats(0, 100))
def test_regularization_rises_from_0_below_1_and_the_s_curve_is_symmetric(epochs: int, constant: float) -> None:
    for kind in ("s-curve", "linear"):
        weights = [regularization_weight(e, epochs, kind) for e in range(epochs)]
        assert weights[0] == 0
        assert weights == sorted(weights)
        assert weights[-1] < 1
        for e in range(1, epochs):
            assert abs(weights[e] + weights[epochs - e] - 1) < 1e-9
    assert regularization_weight(epochs - 1, epochs, constant) == constant


@given(case=partitions())
def test_domains_are_disjoint_complete_and_even_around_the_surest_images(case: tuple[torch.Tensor, Domains]) -> None:
    confidence, domains = case
    parts = [part.tolist() for part in domains.parts]
    dealt = sorted(image for part in parts for image in part)
    confident = domains.confident.tolist()
    assert sorted(dealt + confident * domains.shared) == list(range(len(confidence)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    others = sorted(set(range(len(confidence))).difference(confident))
    if confident and others:
        # equal ones by index
        assert min((confidence[i].item(), -i) for i in confident) > max((confidence[i].item(), -i) for i in others)


@given(case=partitions(), once=st.booleans(), dealt=st.booleans())
def test_what_a_domain_s_student_saw_is_visited_without_it(
    case: tuple[torch.Tensor, Domains], once: bool, dealt: bool
) -> None:
    confidence, domains = case
    visits = visits_of(domains, once, dealt).tolist()
    assert len({tuple(visit) for visit in visits}) == len(visits)
    assert {image for image, _ in visits} == set(range(len(confidence)))
    for image, owner in visits:
        seen_by = {k for k in range(len(domains.parts)) if image in domains.domain(k)}
        assert owner in seen_by or (owner == -1 and once and not dealt and domains.shared)


@given(count=st.integers(0, 100), size=st.integers(2, 40), seed=SEEDS)
def test_each_pass_has_every_index_once_in_batches_of_two_to_the_size(count: int, size: int, seed: int) -> None:
    one = batches(torch.arange(count), size, Generator().manual_seed(seed))
    assert all(2 <= len(batch) <= size for batch in one)
    assert len(one) == batch_count(count, size)
    # one that would be alone is left out
    kept = count - (count % size == 1)
    seen = [index for batch in one for index in batch.tolist()]
    assert len(seen) == len(set(seen)) == kept
    in_order = batches(torch.arange(count), size)
    assert [index for batch in in_order for index in batch.tolist()] == list(range(count))


@given(seed=st.integers(0, 10_000), other=st.integers(0, 10_000), e=st.integers(0, 2000), f=st.integers(0, 2000))
def test_no_two_epochs_of_any_two_runs_share_their_numbers(seed: int, other: int, e: int, f: int) -> None:
    assert epoch_generator(seed, e).initial_seed() == epoch_generator(seed, e).initial_seed()
    assume((seed, e) != (other, f))
    assert epoch_generator(seed, e).initial_seed() != epoch_generator(other, f).initial_seed()
