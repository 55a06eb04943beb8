# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The epoch against Algorithm 1: order and number of steps, what is trained, what is not, and on what."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from torch import Tensor

from anomalib_cdd import Cdd, MVTecNoisy
from anomalib_cdd.models.cdd import lightning_model
from anomalib_cdd.models.cdd.domains import epoch_generator
from anomalib_cdd.models.cdd.students import StudentsInTraining
from anomalib_cdd.models.cdd.training_set import TrainingSet
from anomalib_cdd.teachers.distances import distance

Model = Callable[..., Cdd]
Data = Callable[..., MVTecNoisy]
Engines = Callable[..., Engine]

ALL_OFF = {
    "domain_construction": False,
    "confidence_guidance": False,
    "pseudo_normal": False,
    "confident_distillation": False,
    "regularization": 0.0,
    "feature_noise": 0.0,
}
IMAGES = 15  # 12 normal, floor(0.25 * 12) = 3 injected


class Recorder:
    """Notes every optimiser step, and what the epoch looked like when it was taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[int, str, int]] = []
        self.forks: list[dict[str, Any]] = []
        self.domains: dict[int, Any] = {}
        update, begin, partition = Cdd.optimize, Cdd.epoch, lightning_model.partition
        fork, models = StudentsInTraining.ready, []

        def record_update(model: Cdd, optimizer: Any, loss: Tensor, stage: str) -> None:
            index = [opt.optimizer for opt in model.all_optimizers()].index(optimizer.optimizer)
            self.steps.append((model.current_epoch, stage, index))
            assert torch.isfinite(loss)
            update(model, optimizer, loss, stage)

        def record_epoch(model: Cdd, *args: int) -> Iterator[None]:
            models[:] = [model]
            return begin(model, *args)

        def record_fork(students: StudentsInTraining, k: int, *args: Any, **kwargs: Any) -> Any:
            student, model = fork(students, k, *args, **kwargs), models[0]
            optimizer = model.all_optimizers()[k + 1]
            self.forks.append(
                {
                    "epoch": model.current_epoch,
                    "student": copy.deepcopy(student.state_dict()),
                    "previous": copy.deepcopy(model.training_set.previous.state_dict()),
                    "moments": copy.deepcopy(optimizer.optimizer.state_dict()["state"]),
                    "global_moments": copy.deepcopy(model.all_optimizers()[0].optimizer.state_dict()["state"]),
                }
            )
            return student

        def record_partition(*args: Any, **kwargs: Any) -> Any:
            self.domains[len(self.domains)] = partition(*args, **kwargs)
            return self.domains[len(self.domains) - 1]

        monkeypatch.setattr(Cdd, "optimize", record_update)
        monkeypatch.setattr(Cdd, "epoch", record_epoch)
        monkeypatch.setattr(StudentsInTraining, "ready", record_fork)
        monkeypatch.setattr(lightning_model, "partition", record_partition)


def steps(samples: int, size: int = 4) -> int:
    """Batches of a pass: a last one of a single image is dropped."""
    return math.ceil(samples / size) - (samples % size == 1)


def part_sizes(samples: int, count: int) -> list[int]:
    return [samples // count + (k < samples % count) for k in range(count)]


@pytest.mark.parametrize("kind", ["forked", "persistent"])
@pytest.mark.parametrize("once", [False, True])
def test_steps_are_those_of_algorithm_1(
    make_image_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    once: bool,
) -> None:
    recorder = Recorder(monkeypatch)
    engine = make_engine(max_epochs=4)
    model = make_image_model(domains=(2, 3), confident_once=once, domain_students=kind, domain_interval=1)
    engine.fit(model, datamodule=make_data())
    expected = []
    for epoch, count in enumerate([2, 2, 3, 3]):
        confident = math.floor(min(epoch / 4, 0.5) * IMAGES)
        sizes = [len(part) for part in recorder.domains[epoch].parts]
        assert len(sizes) == count
        assert sum(sizes) == IMAGES - confident
        if kind == "forked":  # dealt evenly; a fold keeps what is not confident of it
            assert sorted(sizes, reverse=True) == part_sizes(IMAGES - confident, count)
        for k, part in enumerate(sizes):
            expected += [(epoch, "domain", k + 1)] * steps(confident + part)
        seen = confident * (1 if once else count) + IMAGES - confident
        expected += [(epoch, "global", 0)] * steps(seen)
        expected += [(epoch, "confident", 0)] * (steps(confident) if confident > 1 else 0)
    assert recorder.steps == expected
    assert engine.trainer.global_step == len(expected)


def test_persistent_students_keep_their_folds_and_live_on_until_k_changes(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder(monkeypatch)
    model = make_model(domains=(2, 3, 2), domain_students="persistent", domain_interval=1, max_confident=0.2)
    make_engine(max_epochs=6).fit(model, datamodule=make_data())
    assert [fork["epoch"] for fork in recorder.forks] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5]
    for epoch, fork in enumerate(recorder.forks):
        copied = all(torch.equal(value, fork["previous"][name]) for name, value in fork["student"].items())
        # the first two, and the third when K rises: copies of the global student; the others go on
        assert copied == (epoch in {0, 1, 6})
        assert bool(fork["moments"]) != copied
    folds = [[set(part.tolist()) for part in recorder.domains[e].parts] for e in range(6)]
    confident = [set(recorder.domains[e].confident.tolist()) for e in range(6)]
    for first in (0, 2, 4):
        for one, other in zip(folds[first], folds[first + 1], strict=True):
            # an image changes its fold by being confident, and in no other way
            assert one - confident[first + 1] == other - confident[first]
    assert folds[0] != folds[4]


@pytest.mark.parametrize("cache", [True, False])
def test_between_the_epochs_in_which_they_learn_what_persistent_students_said_stands(
    make_model: Model, make_data: Data, make_engine: Engines, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    recorder, asked, targets = Recorder(monkeypatch), [], TrainingSet.targets

    def record(data: TrainingSet, students: list[Any], visits: Tensor, *args: Any) -> Any:
        answer, [levels] = targets(data, students, visits, *args), data.teacher([visits[:, 0]])
        asked.append([level[visits[:, 0].argsort()].clone() for level in answer(visits, levels)])
        return answer

    monkeypatch.setattr(TrainingSet, "targets", record)
    model = make_model(domains=(2, 3), domain_interval=2, selection="next", cache=cache, learning_rate=0.05)
    make_engine(max_epochs=6).fit(model, datamodule=make_data())
    stages = [{stage for epoch, stage, _ in recorder.steps if epoch == e} for e in range(6)]
    learned = [True, False, True, True, False, True]  # anew with three domains, after the third epoch
    assert ["domain" in each for each in stages] == learned
    assert all("global" in each for each in stages)
    same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(asked)]
    assert same == [not each for each in learned[1:]]
    if cache:
        said = pairwise(model.training_history.cross_domain)
        assert [a.allclose(b, 0, 0, equal_nan=True) for a, b in said] == same


def test_domain_students_start_as_the_previous_student_in_parameters_and_buffers(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder(monkeypatch)
    model = make_model(domains=(2, 3), domain_students="forked")
    start = copy.deepcopy(model.model.student.state_dict())
    make_engine(max_epochs=2).fit(model, datamodule=make_data())
    assert [fork["epoch"] for fork in recorder.forks] == [0, 0, 1, 1, 1]
    for fork in recorder.forks:
        assert fork["student"].keys() == fork["previous"].keys()
        assert any("running_mean" in name for name in fork["student"])
        for name, value in fork["student"].items():
            assert torch.equal(value, fork["previous"][name]), name
    assert all(torch.equal(start[name], recorder.forks[0]["previous"][name]) for name in start)
    assert not all(torch.equal(start[name], recorder.forks[-1]["previous"][name]) for name in start)


def test_teacher_and_previous_student_never_change(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(domains=(2, 3))
    teacher = copy.deepcopy(model.model.teacher.state_dict())
    previous: list[tuple[Any, dict[str, Tensor]]] = []
    recall = TrainingSet.recall

    def record(training_set: TrainingSet, student: Any, needed: bool) -> None:
        assert not student.training
        assert not any(parameter.requires_grad for parameter in student.parameters())
        previous.append((student, copy.deepcopy(student.state_dict())))
        recall(training_set, student, needed)

    monkeypatch.setattr(TrainingSet, "recall", record)
    make_engine(max_epochs=3).fit(model, datamodule=make_data())
    assert len(previous) == 3
    for student, before in previous:
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in model.model.teacher.state_dict().items())


def expected_target(outputs: list[list[Tensor]], previous: list[Tensor], own: int, count: int, selection: str) -> Any:
    """The pseudo-normal target of one image by Eq. 17 and 18, from what every domain student says of it."""
    allowed = [h for h in range(count) if h != own]
    if selection == "all":
        units = [[level / level.norm() for level in outputs[h]] for h in allowed]
        return [sum(levels) / len(allowed) for levels in zip(*units, strict=True)]
    if selection == "next":
        return outputs[(own + 1) % count]
    affinity = {
        h: sum(
            torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in zip(outputs[h], previous, strict=True)
        )
        for h in allowed
    }
    return outputs[max(affinity, key=affinity.get)]


def relative_gap(first: list[Tensor], second: list[Tensor]) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    ("selection", "visited", "count"),
    [
        ("consensual", "each", 3),
        ("consensual", "each", 2),
        ("consensual", "once", 3),
        ("consensual", "once", 2),
        ("next", "each", 3),
        ("all", "each", 3),
        ("all", "once", 2),
    ],
)
def test_targets_are_by_hand_those_of_students_that_did_not_see_the_image(
    make_image_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    selection: str,
    visited: str,
    count: int,
    cache: bool,
) -> None:
    recorder = Recorder(monkeypatch)
    winners: Counter[int] = Counter()
    targets = TrainingSet.targets

    def compare(training_set: TrainingSet, students: list[Any], visits: Tensor) -> None:
        [teacher] = training_set.teacher([visits[:, 0]])
        previous = training_set.previous(teacher)
        outputs = [student(teacher) for student in students]
        nobody = torch.zeros(count, IMAGES, dtype=torch.bool)
        rows = zip(*targets(training_set, students, visits, selection, nobody)(visits, teacher), strict=True)
        for row, (chosen, own) in enumerate(zip(rows, visits[:, 1].tolist(), strict=True)):
            said = [[level[row] for level in output] for output in outputs]
            expected = expected_target(said, [level[row] for level in previous], own, count, selection)
            # targets are kept in bf16
            assert relative_gap(chosen, expected) < 1e-2
            winners.update(h for h in range(count) if relative_gap(chosen, said[h]) < 1e-2)

    def check(training_set: TrainingSet, students: list[Any], visits: Tensor, *rest: Any) -> Any:
        domains = recorder.domains[len(recorder.domains) - 1]
        counts = Counter(visits[:, 0].tolist())
        assert all(counts[i] == (count if visited == "each" else 1) for i in domains.confident.tolist())
        for k, part in enumerate(domains.parts):
            assert {i for i, own in visits.tolist() if own == k} >= set(part.tolist())
        # in reverse too: no student may win by its place
        backward = torch.stack([visits[:, 0], torch.where(visits[:, 1] < 0, -1, count - 1 - visits[:, 1])], dim=1)
        compare(training_set, students[::-1], backward)
        compare(training_set, students, visits)
        return targets(training_set, students, visits, *rest)

    monkeypatch.setattr(TrainingSet, "targets", check)
    model = make_image_model(
        domains=(count,), selection=selection, cache=cache, learning_rate=0.05, confident_once=visited == "once"
    )
    make_engine(max_epochs=3).fit(model, datamodule=make_data())
    if selection != "all":
        assert all(winners[h] > 0 for h in range(count))


def test_no_gradient_reaches_a_target(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Counter()
    for name in ("distance", "target_distance"):
        original = getattr(lightning_model, name)

        def guarded(target: Any, output: Any, *rest: str, original: Any = original, name: str = name) -> Tensor:
            assert not any(level.requires_grad for level in target)
            assert all(level.requires_grad for level in output)
            seen[name] += 1
            return original(target, output, *rest)

        monkeypatch.setattr(lightning_model, name, guarded)
    make_engine(max_epochs=2).fit(make_model(), datamodule=make_data())
    assert seen["distance"] > 0
    assert seen["target_distance"] > 0


def test_confident_patches_come_from_the_teacher_and_nobody_is_asked_in_vain(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without confident images, with two domains and no regularisation nothing reads the previous student."""
    shares, recalls = [], []
    target_distance, recall = lightning_model.target_distance, TrainingSet.recall
    mix = lightning_model.with_confident_patches

    def mixing(said: Any, teacher: Any, share: float, gather: Any) -> Any:
        mixed = mix(said, teacher, share, gather)
        shares.extend(float((a == b).all(dim=1).float().mean()) for a, b in zip(mixed, teacher, strict=True))
        monkeypatch.setattr(
            lightning_model,
            "target_distance",
            lambda target, output, selection: _same(target, mixed) or target_distance(target, output, selection),
        )
        return mixed

    def _same(one: Any, other: Any) -> None:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def recalling(training_set: TrainingSet, previous: Any, needed: bool) -> None:
        recalls.append(needed)
        recall(training_set, previous, needed)

    monkeypatch.setattr(lightning_model, "with_confident_patches", mixing)
    monkeypatch.setattr(TrainingSet, "recall", recalling)
    model = make_model(confident_patches=0.75)
    make_engine(max_epochs=3).fit(model, datamodule=make_data())
    assert recalls == [False] * 3
    assert len(shares) == 3 * 3 * steps(IMAGES)  # levels, epochs, batches
    assert shares == pytest.approx([0.75] * len(shares), abs=0.05)
    assert model.training_report() is not None


def test_all_off_is_reverse_distillation(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
) -> None:
    epochs = 3
    model = make_model(**ALL_OFF)
    rival = copy.deepcopy(model.model)
    data = make_data()
    make_engine(max_epochs=epochs).fit(model, datamodule=data)

    # RD4AD by hand: teacher features, flattened cosine distance, Adam
    data.setup()
    images = torch.cat([model.pre_processor.transform(item.image[None]) for item in data.train_data])
    with torch.no_grad():
        # the cache keeps the teacher's features in fp16; the order of a sum depends on the batch
        parts = [[level.half().float() for level in rival.teacher(part)] for part in images.split(4)]
    teacher = [torch.cat(levels) for levels in zip(*parts, strict=True)]
    optimizer = torch.optim.Adam(rival.student.parameters(), lr=0.005, betas=(0.5, 0.999), fused=True)
    rival.train()
    for epoch in range(epochs):
        generator = epoch_generator(0, epoch)
        order = torch.randperm(IMAGES, generator=generator)  # the one domain
        order = order[torch.randperm(IMAGES, generator=generator)]
        for batch in order.split(4):
            levels = [level[batch] for level in teacher]
            loss = distance(levels, rival.student(levels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in rival.student.state_dict().items():
        assert torch.allclose(value, model.model.student.state_dict()[name], atol=1e-4), name


def test_confident_images_are_those_that_the_previous_student_reproduces_best(
    make_image_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder(monkeypatch)
    expected: list[Tensor] = []
    recall = TrainingSet.recall

    def by_hand(training_set: TrainingSet, student: Any, needed: bool) -> None:
        recall(training_set, student, needed)
        [teacher] = training_set.teacher([torch.arange(IMAGES)])
        with torch.no_grad():
            levels = zip(teacher, student(teacher), strict=True)
            expected.append(sum(torch.cosine_similarity(a, b, dim=1).mean(dim=(1, 2)) for a, b in levels))
        assert torch.allclose(training_set.confidence, expected[-1], atol=1e-5)

    monkeypatch.setattr(TrainingSet, "recall", by_hand)
    make_engine(max_epochs=3).fit(make_image_model(learning_rate=0.02), datamodule=make_data())
    assert not torch.allclose(expected[1], expected[2], atol=1e-3)
    for epoch in (1, 2):
        confident = recorder.domains[epoch].confident
        assert len(confident) > 1
        assert set(confident.tolist()) == set(expected[epoch].topk(len(confident)).indices.tolist())


@pytest.mark.parametrize("cache", [True, False])
def test_each_image_is_recalled_as_itself(
    make_model: Model, make_data: Data, make_engine: Engines, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    recall = TrainingSet.recall

    def by_hand(training_set: TrainingSet, student: Any, needed: bool) -> None:
        # a small student says much the same of every image; the teacher does not
        recall(training_set, lambda levels: [2 * level for level in levels], needed)
        indices = torch.randperm(IMAGES)
        [teacher] = training_set.teacher([indices])
        recalled = training_set.recalled(indices, teacher)
        for level, twice in zip(teacher, recalled, strict=True):
            assert torch.equal(torch.cdist(2 * level.flatten(1), twice.flatten(1)).argmin(dim=1), torch.arange(IMAGES))
        recall(training_set, student, needed)

    monkeypatch.setattr(TrainingSet, "recall", by_hand)
    make_engine(max_epochs=1).fit(make_model(cache=cache), datamodule=make_data())


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(("regularization", "weight"), [("s-curve", 0.5), (2.0, 2.0), (0.0, 0.0)])
def test_domain_loss_is_equation_15(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    regularization: float | str,
    weight: float,
    cache: bool,
) -> None:
    seen: list[tuple[Tensor, list[Tensor], list[Tensor]]] = []
    original, update = lightning_model.distance, Cdd.optimize
    checked = Counter()

    def record(target: Any, output: Any) -> Tensor:
        seen.append((original(target, output).detach(), target, output))
        return original(target, output)

    def check(model: Cdd, optimizer: Any, loss: Tensor, stage: str) -> None:
        if stage == "domain" and model.current_epoch == 1:
            _, teacher, output = seen[0]
            with torch.no_grad():
                previous = model.training_set.previous(teacher)
            expected = original(teacher, output) + weight * original(previous, output)
            # the previous student's levels are kept in bf16
            assert loss.item() == pytest.approx(expected.item(), abs=2e-3)
            checked[stage] += 1
        seen.clear()
        update(model, optimizer, loss, stage)

    monkeypatch.setattr(lightning_model, "distance", record)
    monkeypatch.setattr(Cdd, "optimize", check)
    model = make_model(domains=(2,), domain_interval=1, regularization=regularization, cache=cache)
    make_engine(max_epochs=2).fit(model, datamodule=make_data())
    assert checked["domain"] > 0


@pytest.mark.parametrize(("relative", "sigma"), [(False, 0.2), (True, 0.5), (False, 0.0)])
def test_noise_is_on_the_global_students_input_in_the_cross_domain_stage_alone(
    make_image_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    relative: bool,
    sigma: float,
) -> None:
    model = make_image_model(feature_noise=sigma, relative_noise=relative)
    inputs: list[list[Tensor]] = []
    noise: dict[str, list[Tensor]] = {"global": [], "confident": []}
    update = Cdd.optimize
    model.model.student.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))

    def look(model: Cdd, optimizer: Any, loss: Tensor, stage: str) -> None:
        if stage in noise:
            clean = model.training_set.features.cache.read(torch.arange(IMAGES))
            for level, known in zip(inputs[-1], clean, strict=True):
                gaps = [min((sample - other for other in known), key=torch.norm) for sample in level]
                gap = torch.stack(gaps)
                noise[stage].append(gap / level.std() if relative else gap)
        update(model, optimizer, loss, stage)

    monkeypatch.setattr(Cdd, "optimize", look)
    make_engine(max_epochs=3).fit(model, datamodule=make_data())
    assert max(gap.abs().max() for gap in noise["confident"]) == 0
    first, last = noise["global"][0], noise["global"][-3]
    # relative noise raises the level's own standard deviation: sigma / sqrt(1 + sigma^2) of what is seen
    expected = sigma / math.sqrt(1 + sigma**2) if relative else sigma
    assert first.std().item() == pytest.approx(expected, rel=0.1)
    assert first.mean().abs().item() < 0.05
    if sigma:
        assert not torch.equal(first[:2], last[:2])
