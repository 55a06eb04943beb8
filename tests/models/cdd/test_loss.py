# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Distance, confidence and selection against values worked out by hand."""

import itertools
import math

import pytest
import torch
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

from anomalib_cdd.models.cdd.loss import (
    candidate_weights,
    confidence,
    perturb,
    pseudo_normal,
    target_distance,
    with_confident_patches,
)
from anomalib_cdd.teachers.distances import distance, similarity


def level(*images: list[list[list[float]]]) -> torch.Tensor:
    return torch.tensor(images)


def test_distance_flattens_each_level_of_each_image() -> None:
    # image 1: (1, 0, 0, 1) and (1, 0, 0, 0): cos = 1 / sqrt 2; image 2: equal up to scale, cos = 1
    first = [level([[[1.0, 0.0], [0.0, 1.0]]], [[[1.0, 2.0], [3.0, 4.0]]]), level([[[3.0]]], [[[1.0]]])]
    second = [level([[[1.0, 0.0], [0.0, 0.0]]], [[[2.0, 4.0], [6.0, 8.0]]]), level([[[-5.0]]], [[[7.0]]])]
    # level 2: cos = -1 and 1
    assert similarity(first, second).tolist() == pytest.approx([1 / math.sqrt(2) - 1, 2.0])
    assert distance(first, second).item() == pytest.approx((1 - 1 / math.sqrt(2)) / 2 + (2 + 0) / 2)


def test_distance_is_that_of_reverse_distillation() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(3, 4, 5, 6), torch.randn(3, 8, 2, 3)]
    student = [torch.randn_like(part) for part in teacher]
    assert distance(teacher, student).item() == pytest.approx(ReverseDistillationLoss()(teacher, student).item())


def test_no_gradient_reaches_a_target() -> None:
    target = [torch.randn(2, 3, 2, 2, requires_grad=True)]
    output = [torch.randn(2, 3, 2, 2, requires_grad=True)]
    loss = distance(target, output) + sum(target_distance(target, output, kind) for kind in ("all", "next"))
    loss.backward()
    assert target[0].grad is None
    assert output[0].grad is not None


def test_confidence_is_per_pixel() -> None:
    # two pixels of two channels: (1, 0) against (1, 1), cos 1 / sqrt 2; (0, 2) against (0, 1), cos 1
    teacher = [level([[[1.0, 0.0]], [[0.0, 2.0]]])]
    student = [level([[[1.0, 0.0]], [[1.0, 1.0]]])]
    assert confidence(teacher, student).tolist() == pytest.approx([(1 / math.sqrt(2) + 1) / 2])
    assert confidence(teacher * 3, teacher * 3).tolist() == pytest.approx([3.0])


def test_consensual_takes_the_candidate_nearest_to_the_previous_student_per_image() -> None:
    affinity = torch.tensor([[0.9, 0.5, 0.7], [0.9, 0.5, 0.7], [0.1, 0.2, 0.3], [0.9, 0.5, 0.7]])
    own = torch.tensor([0, 1, 2, -1])
    weights = candidate_weights(affinity, own, "consensual")
    # the first image's nearest is its own student, who saw it: the next nearest serves
    assert weights.argmax(dim=1).tolist() == [2, 0, 1, 0]
    assert weights.sum(dim=1).tolist() == [1.0] * 4


@pytest.mark.parametrize("selection", ["consensual", "next", "all"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_student_that_saw_the_image_is_never_its_candidate(selection: str, count: int) -> None:
    own = torch.arange(count).repeat(50)
    affinity = torch.rand(len(own), count, generator=torch.Generator().manual_seed(0))
    weights = candidate_weights(affinity, own, selection)
    assert weights[torch.arange(len(own)), own].eq(0).all()
    assert torch.allclose(weights.sum(dim=1), torch.ones(len(own)))


def test_next_and_all() -> None:
    affinity = torch.zeros(3, 3)
    own = torch.tensor([0, 1, 2])
    assert candidate_weights(affinity, own, "next").argmax(dim=1).tolist() == [1, 2, 0]
    assert candidate_weights(affinity, own, "all")[0].tolist() == [0.0, 0.5, 0.5]
    assert candidate_weights(affinity[:1], torch.tensor([-1]), "all")[0].tolist() == pytest.approx([1 / 3] * 3)


def test_target_distance_is_the_mean_distance_to_every_candidate() -> None:
    torch.manual_seed(0)
    candidates = [[torch.randn(4, 3, 5, 5), torch.randn(4, 6, 2, 2)] for _ in range(3)]
    output = [torch.randn(4, 3, 5, 5), torch.randn(4, 6, 2, 2)]
    own = torch.full((4,), 1)
    everyone = pseudo_normal(candidates, candidate_weights(torch.zeros(4, 3), own, "all"), "all")
    expected = (distance(candidates[0], output) + distance(candidates[2], output)) / 2
    assert target_distance(everyone, output, "all").item() == pytest.approx(expected.item(), abs=1e-6)
    one = pseudo_normal(candidates, candidate_weights(torch.zeros(4, 3), own, "next"), "next")
    assert target_distance(one, output, "next").item() == pytest.approx(distance(candidates[2], output).item())
    assert all(torch.equal(chosen, candidate) for chosen, candidate in zip(one, candidates[2], strict=True))


def test_of_two_candidates_all_and_one_are_the_same() -> None:
    torch.manual_seed(0)
    candidates = [[torch.randn(4, 3, 5, 5)] for _ in range(2)]
    output = [torch.randn(4, 3, 5, 5)]
    own = torch.tensor([0, 1, 0, 1])
    losses = [
        target_distance(pseudo_normal(candidates, candidate_weights(torch.zeros(4, 2), own, kind), kind), output, kind)
        for kind in ("consensual", "next", "all")
    ]
    assert losses[0].item() == pytest.approx(losses[1].item()) == pytest.approx(losses[2].item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_is_that_of_the_cosine(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    target = [torch.randn(3, 4, 5, 6, dtype=dtype), torch.randn(3, 2, 2, 2, dtype=dtype)]
    output = [torch.randn_like(level).requires_grad_() for level in target]
    distance(target, output).backward()
    ours = [level.grad.clone() for level in output]
    for level in output:
        level.grad = None
    ReverseDistillationLoss()(target, output).backward()
    for mine, level in zip(ours, output, strict=True):
        assert torch.allclose(mine, level.grad, atol=1e-6)


def test_half_precision_is_computed_in_single() -> None:
    big = [torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)]  # the sum of squares overflows fp16
    assert similarity(big, big).item() == pytest.approx(1.0)
    assert distance(big, [part.float() for part in big]).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_noise_is_added_in_single_precision_whatever_the_features_are_kept_in(relative: bool) -> None:
    level = torch.randn(2, 3, 4, 5).half()
    (kept,), (single,) = (
        perturb([each], 0.2, torch.Generator().manual_seed(0), relative) for each in (level, level.float())
    )
    assert kept.dtype == torch.float32
    assert torch.equal(kept, single)
    (double,) = perturb([level.double()], 0.2, torch.Generator().manual_seed(0), relative)
    assert double.dtype == torch.float64


def test_a_candidate_that_nobody_asked_sets_no_precision() -> None:
    """In its place stand the teacher's levels, in fp16, which those of an untrained student overflow."""
    asked = torch.full((1, 2, 1, 1), 1e6, dtype=torch.bfloat16)
    placeholder = torch.ones(1, 2, 1, 1, dtype=torch.float16)
    (target,) = pseudo_normal([[placeholder], [asked]], torch.tensor([[0.0, 1.0]]), "consensual")
    assert torch.equal(target, asked.float())


def test_a_loss_and_its_gradient_do_not_depend_on_how_levels_lie_in_memory() -> None:
    torch.manual_seed(0)
    target, output = torch.rand(3, 5, 4, 6), torch.rand(3, 5, 4, 6)
    layouts = [
        lambda level: level.contiguous(),
        lambda level: level.contiguous(memory_format=torch.channels_last),
        lambda level: level.transpose(2, 3).contiguous().transpose(2, 3),
        lambda level: torch.cat([level, level], dim=1)[:, :5],
    ]
    ends = []
    for ours, theirs in itertools.product(layouts, layouts):
        level = output.clone().requires_grad_()
        loss = distance([theirs(target)], [ours(level)])
        loss.backward()
        ends.append((loss.detach(), level.grad))
    for loss, gradient in ends[1:]:
        torch.testing.assert_close(loss, ends[0][0])
        torch.testing.assert_close(gradient, ends[0][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cosine", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_near_agreement_is_that_of_fp32_in_bf16_too(cosine: float, layout: torch.memory_format) -> None:
    """Of nearly equal levels the gradient is a difference of near equals; products in bf16 were wrong by 12 %."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 32, 12, 12, generator=generator).bfloat16().float()
    noise = torch.randn(2, 32, 12, 12, generator=generator)
    student = (target + math.sqrt(1 / cosine**2 - 1) * noise).bfloat16()
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        output = student.to(dtype).to(memory_format=layout).requires_grad_()
        if dtype == torch.float64:
            flat = torch.cosine_similarity(target.double().flatten(1), output.flatten(1))
            (1 - flat).mean().backward()
        else:
            distance([target], [output]).backward()
        gradients.append(output.grad.double())
    assert output.grad.dtype == torch.bfloat16
    assert ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item() < 0.005


def test_a_patch_that_the_target_foretells_comes_from_the_teacher() -> None:
    # one level, two images of one row of two patches, two channels; the cosines are 1, 0 and .6, .8
    teacher = [level([[[2.0, 1.0]], [[0.0, 0.0]]], [[[3.0, 4.0]], [[4.0, 3.0]]])]
    target = [level([[[4.0, 0.0]], [[0.0, 5.0]]], [[[5.0, 5.0]], [[0.0, 0.0]]])]
    (half,) = with_confident_patches(target, teacher, 0.5)
    # image 1 keeps its first patch, where the target is twice too long, image 2 its second, where t = .8 of it fits
    assert half[0].tolist() == [[[2.0, 0.0]], [[0.0, 2.5]]]
    assert half[1].flatten().tolist() == pytest.approx([5 * 0.8, 4.0, 0.0, 3.0])
    (quarter,) = with_confident_patches(target, teacher, 0.25)
    # nothing of image 2 is kept: its target stays as it is
    assert quarter[0].tolist() == [[[2.0, 0.0]], [[0.0, 2.5]]]
    assert quarter[1].tolist() == target[0][1].tolist()
    (whole,) = with_confident_patches(target, teacher, 1.0)
    assert whole.tolist() == teacher[0].tolist()


def test_confident_patches_are_chosen_level_by_level() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(3, 4, 10, 10), torch.randn(3, 8, 5, 5)]
    target = [torch.randn_like(part).bfloat16() for part in teacher]
    for share in (0.1, 0.9):
        for mixed, own, said in zip(with_confident_patches(target, teacher, share), teacher, target, strict=True):
            kept = (mixed == own).all(dim=1)
            assert kept.float().mean().item() == pytest.approx(share, abs=0.01)
            agreement = torch.cosine_similarity(own, said.float(), dim=1)
            assert agreement[kept].min() > agreement[~kept].max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_confident_patches_are_chosen_in_fp32_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    teacher = [50 * torch.randn(2, 64, 10, 10)]
    target = [(teacher[0] + 20 * torch.randn_like(teacher[0])).bfloat16()]
    [plain] = with_confident_patches(target, teacher, 0.5)
    with torch.autocast("cpu", dtype=dtype):
        [cast] = with_confident_patches(target, teacher, 0.5)
    assert torch.equal(cast, plain)


def test_a_target_is_never_turned_round() -> None:
    # the one patch that agrees better than the rest still points away from the teacher's
    teacher = [level([[[1.0, 1.0]], [[0.0, 0.0]]])]
    target = [level([[[-1.0, -2.0]], [[1.0, 0.0]]])]
    [mixed] = with_confident_patches(target, teacher, 0.5)
    assert mixed[0].tolist() == [[[1.0, -2.0]], [[0.0, 0.0]]]


def test_devices_that_share_a_batch_choose_of_all_of_it() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(4, 8, 5, 5)]
    target = [torch.randn(4, 8, 5, 5)]
    said: list[torch.Tensor] = []
    [whole] = with_confident_patches(target, teacher, 0.3, lambda own: said.append(own) or own)
    [everyone] = said
    for rank in (slice(0, 2), slice(2, 4)):
        [mine] = with_confident_patches([target[0][rank]], [teacher[0][rank]], 0.3, lambda _: everyone)
        torch.testing.assert_close(mine, whole[rank])
