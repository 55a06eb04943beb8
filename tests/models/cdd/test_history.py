# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a training says of its images: scores by students that were never trained on them, kept and resumed."""

import copy
import pickle
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.callbacks.tiler_configuration import TilerConfigurationCallback
from anomalib.engine import Engine
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from samples import make_sample, save
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from anomalib_cdd import Cdd, FolderNoisy, MVTecNoisy
from anomalib_cdd.models.cdd import lightning_model
from anomalib_cdd.models.cdd.domains import Domains
from anomalib_cdd.models.cdd.history import TrainingHistory, met_before
from anomalib_cdd.models.cdd.students import StudentsInTraining
from anomalib_cdd.models.cdd.training_set import TrainingSet
from anomalib_cdd.teachers.distances import similarity
from anomalib_cdd.teachers.students import Student
from anomalib_cdd.training.image_files import contents_of
from anomalib_cdd.training.scoring import iterate_predictions

Model, Data, Engines = Callable[..., Cdd], Callable[..., MVTecNoisy], Callable[..., Engine]
IMAGES = 15
NAN = torch.nan


def record(history: TrainingHistory, epoch: int, scores: list[float], scale: list[float]) -> None:
    history.record(epoch, torch.tensor(scores), torch.tensor(scale))


def test_report_is_by_hand_the_mean_of_standardised_epochs() -> None:
    history = TrainingHistory(["a", "b", "c"])
    assert history.report() is None
    record(history, 0, [NAN] * 3, [NAN, NAN])  # an epoch that asked nobody
    record(history, 1, [2.0, 4.0, 8.0], [4.0, 2.0])
    record(history, 2, [0.3, 0.5, NAN], [0.4, 0.1])  # c is in every domain: the epoch before has its say
    report = history.report()
    # standardised: a -1 and -1, b 0 and 1, c 2; the last epoch's scores have mean .4, deviation .1
    assert report.scores.tolist() == pytest.approx([0.4 - 0.1, 0.4 + 0.05, 0.4 + 0.2])
    history.own = torch.tensor([0.9, 0.2])  # once the trained model's are known, theirs count
    assert history.report().scores.tolist() == pytest.approx([0.9 - 0.2, 0.9 + 0.1, 0.9 + 0.4])
    assert report.image_paths == ["a", "b", "c"]
    expected = [[NAN] * 3, [-1.0, 0.0, 2.0], [-1.0, 1.0, NAN]]
    np.testing.assert_allclose(report.curves["standard_score"], expected, rtol=1e-5)
    # a resume from epoch 1 writes it again
    record(history, 1, [1.0, 2.0, 3.0], [2.0, 1.0])
    assert len(history.cross_domain) == len(history.scale) == 2
    assert history.report().scores.tolist() == pytest.approx([1.0, 2.0, 3.0])
    # an image that was in every domain from the start has no score out of sample, and there is no report
    record(history, 0, [1.0, 2.0, NAN], [2.0, 1.0])
    record(history, 1, [1.0, 2.0, NAN], [2.0, 1.0])
    assert history.report() is None


def test_agreement_is_the_rank_correlation_of_two_epochs() -> None:
    history = TrainingHistory(list("abcde"))
    for epoch, scores in enumerate(([5.0, 1.0, 2.0, 3.0, 4.0], [9.0, 0.2, 0.1, 0.4, NAN])):
        assert history.agreement() == 0
        record(history, epoch, scores, [0.0, 1.0])
    # ranks 4 1 2 3 and 4 2 1 3: 1 - 6 (1 + 1) / (4 * 15)
    assert history.agreement() == pytest.approx(0.8)
    # an epoch in which nobody learned repeats the scores
    record(history, 2, [9.0, 0.2, 0.1, 0.4, NAN], [0.0, 1.0])
    assert history.agreement() == pytest.approx(0.8)
    record(history, 3, [NAN] * 5, [NAN, NAN])
    assert history.agreement() == 0


def test_a_training_can_stop_once_the_ranking_stays(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    def scores(threshold: float) -> list[Tensor]:
        stop = EarlyStopping("epoch_ranking_agreement", mode="max", patience=9, stopping_threshold=threshold)
        engine, model = make_engine(max_epochs=5, callbacks=[stop]), make_model(domain_interval=1)
        engine.fit(model, datamodule=make_data())
        assert model.post_processor.image_threshold.isfinite()
        return model.training_history.cross_domain

    whole = scores(threshold=1.0)
    assert len(whole) == 5
    known = [(~(a.isnan() | b.isnan()), a, b) for a, b in pairwise(whole)]
    agreements = [float(spearman_corrcoef(b[both], a[both])) for both, a, b in known]
    enough = max(agreements[:-1]) - 1e-6  # an epoch before the last has it
    reached = next(epoch for epoch, agreement in enumerate(agreements, 1) if agreement > enough)
    assert len(scores(threshold=enough)) == reached + 1 < 5


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    ("kind", "once", "count"), [("forked", True, 2), ("forked", False, 3), ("persistent", True, 3), (0.5, True, 2)]
)
def test_scores_are_by_hand_those_of_students_that_were_never_trained_on_the_image(
    make_image_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    cache: bool,
    kind: str | float,
    once: bool,
    count: int,
) -> None:
    """Every optimiser step says which student met which image; a copy of a student has met what that one has."""
    expected: list[Tensor] = []
    met = {k: torch.zeros(IMAGES, dtype=torch.bool) for k in range(-1, count)}  # -1 is the global student
    targets, optimize = TrainingSet.targets, Cdd.optimize
    teacher, shown = TrainingSet.teacher, []
    drawn: list[Any] = []
    partition = lightning_model.partition

    def watch_batches(data: TrainingSet, parts: list[Tensor]) -> Any:
        for part, levels in zip(parts, teacher(data, parts), strict=True):
            shown.append(part)
            yield levels

    def watch_steps(model: Cdd, optimizer: Any, loss: Tensor, stage: str) -> None:
        place = [other.optimizer for other in model.all_optimizers()].index(optimizer.optimizer) - 1
        if stage != "global":  # which is taught by the other domains' students
            met[place][shown[-1]] = True
        optimize(model, optimizer, loss, stage)

    ready = StudentsInTraining.ready

    def watch_forks(students: StudentsInTraining, k: int, whole: Student, *args: Any, **kwargs: Any) -> Any:
        before = {name: value.clone() for name, value in whole.state_dict().items()}
        student = ready(students, k, whole, *args, **kwargs)
        if all(torch.equal(value, before[name]) for name, value in student.state_dict().items()):
            met[k] = met[-1].clone()
        return student

    def by_hand(data: TrainingSet, students: list[Any], *args: Any) -> Any:
        [levels] = teacher(data, [torch.arange(IMAGES)])
        with torch.no_grad():
            scores = torch.stack([data.score(levels, student(levels)) for student in students])
        outside = torch.stack([~met[k] for k in range(count)])
        own = torch.full((IMAGES,), -1)
        for k, part in enumerate(drawn[-1].parts):
            own[part] = k
        outside &= torch.arange(count)[:, None] != own
        expected.append((scores * outside).sum(dim=0) / outside.sum(dim=0))
        return targets(data, students, *args)

    def record_partition(*args: Any, **kwargs: Any) -> Any:
        drawn.append(partition(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(lightning_model, "partition", record_partition)
    monkeypatch.setattr(TrainingSet, "teacher", watch_batches)
    monkeypatch.setattr(TrainingSet, "targets", by_hand)
    monkeypatch.setattr(Cdd, "optimize", watch_steps)
    monkeypatch.setattr(StudentsInTraining, "ready", watch_forks)
    options = {"domains": (count,), "domain_students": kind, "confident_once": once}
    model = make_image_model(cache=cache, learning_rate=0.05, **options)
    # no pass is of 13 images, so that none has a last batch of a single one, which would be left out
    make_engine(max_epochs=4).fit(model, datamodule=make_data(train_batch_size=12))
    assert len(drawn[-1].confident) > 1
    for epoch, (said, by_student) in enumerate(zip(model.training_history.cross_domain, expected, strict=True)):
        close = torch.isclose(said, by_student, atol=1e-5, equal_nan=True)
        # without a cache they are asked while training, which drops a last batch of one visit
        assert (~close).sum() <= (0 if cache else 1), epoch
    assert not expected[0].isnan().any()
    assert expected[-1].isnan().any()


@pytest.mark.parametrize("interval", [1, 2])
def test_a_shorter_training_forks_the_students_that_its_checkpoint_lacks(
    make_model: Model, make_data: Data, make_engine: Engines, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    """After three of eight epochs there are two students; of four epochs the fourth has three, which live on."""
    options = {"domains": (2, 3), "domain_students": "persistent", "domain_interval": interval}
    stop = EarlyStopping("epoch_ranking_agreement", mode="max", patience=9, stopping_threshold=-2)
    engine = make_engine(max_epochs=8, min_epochs=3, callbacks=[stop])
    engine.fit(make_model(**options), datamodule=make_data())
    saved = torch.load(engine.best_model_path, weights_only=True)
    assert (saved["epoch"], len(saved["cdd_training"]["domain_students"])) == (2, 2)
    ready, begun, asked = StudentsInTraining.ready, [], []

    def watch(students: StudentsInTraining, k: int, *args: Any, lives_on: bool) -> Student:
        begun.append((k, lives_on))
        return ready(students, k, *args, lives_on=lives_on)

    targets = TrainingSet.targets
    monkeypatch.setattr(StudentsInTraining, "ready", watch)
    monkeypatch.setattr(TrainingSet, "targets", lambda *args: asked.append(args[4].clone()) or targets(*args))
    model = make_model(**options)
    make_engine(max_epochs=4).fit(model, datamodule=make_data(), ckpt_path=engine.best_model_path)
    assert begun == [(0, True), (1, True), (2, False)]
    # the third comes from the global student, which has learned from every image
    assert asked[0].any(dim=1).tolist() == [True, True, False]
    folds = ~asked[0][:2].any(dim=0)
    assert torch.equal(model.training_history.cross_domain[-1].isnan(), folds)


@pytest.mark.parametrize(("epochs", "cache", "asked"), [(1, True, True), (3, False, True), (2, True, False)])
def test_a_report_is_of_the_size_of_the_trained_models_own_scores(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path, epochs: int, cache: bool, asked: bool
) -> None:
    options = {} if asked else {"post_processor": False, "audit": False}
    data, model = make_data(train_batch_size=5), make_model(cache=cache, domain_students="persistent", **options)
    make_engine(max_epochs=epochs).fit(model, datamodule=data)
    batches = iterate_predictions(model, data.train_data, batch_size=5, device=model.device, progress=False)
    own = torch.cat([scores for _, scores, _, _ in batches])
    mean, spread = own.mean(), own.std(correction=0)
    assert torch.allclose(model.training_history.own, torch.stack([mean, spread]), rtol=1e-2)
    reported = torch.from_numpy(model.training_report().scores)
    assert (reported.mean() - mean).abs() < spread
    if asked:
        assert own.min() <= model.post_processor.image_threshold <= own.max() + spread
    loaded = Cdd.load_from_checkpoint(next((tmp_path / "results").rglob("*.ckpt")))
    assert torch.equal(loaded.training_history.own, model.training_history.own)


def test_a_training_that_is_stopped_early_has_the_scale_of_its_report(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    stop = EarlyStopping("epoch_ranking_agreement", mode="max", patience=9, stopping_threshold=-2)
    model = make_model(post_processor=False)
    engine = make_engine(max_epochs=4, callbacks=[stop])
    engine.fit(model, datamodule=make_data())
    assert engine.trainer.current_epoch < 4
    assert model.training_history.own.isfinite().all()


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, [True] * 4),
        ({"domain_students": "forked"}, [True, False, False, False]),
        ({"domain_students": 0.5}, [True, True, False, False]),
    ],
)
def test_who_is_forked_from_a_student_that_learned_patches_of_every_image_is_not_asked(
    make_model: Model, make_data: Data, make_engine: Engines, options: dict[str, Any], known: list[bool]
) -> None:
    model = make_model(**options)
    make_engine(max_epochs=4).fit(model, datamodule=make_data())
    scores = model.training_history.cross_domain
    assert [bool(epoch.isfinite().all()) for epoch in scores] == known
    assert [bool(epoch.isnan().all()) for epoch in scores] == [not each for each in known]
    assert model.training_report() is not None


def test_history_is_saved_and_resumed(make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path) -> None:
    model, data = make_model(), make_data()
    make_engine(max_epochs=3).fit(model, datamodule=data)
    history = model.training_history
    assert history.image_paths == data.train_data.samples["image_path"].tolist()
    assert len(history.cross_domain) == len(history.scale) == 3
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    loaded = Cdd.load_from_checkpoint(checkpoint)
    assert loaded.training_report().scores.tolist() == model.training_report().scores.tolist()
    assert loaded.training_report().contents == contents_of(history.image_paths)
    # what an export pickles has no training in it
    assert pickle.loads(pickle.dumps(model)).training_history is None  # noqa: S301
    engine = make_engine(max_epochs=4)
    resumed = make_model()
    engine.fit(resumed, datamodule=make_data(), ckpt_path=checkpoint)
    assert len(resumed.training_history.cross_domain) == 4
    assert torch.equal(resumed.training_history.cross_domain[2], history.cross_domain[2])


@pytest.mark.parametrize(
    "options", [{"pseudo_normal": False, "domain_construction": False}, {"warmup_epochs": 1}, {"warmup_epochs": 2}]
)
def test_who_has_learned_from_every_image_gives_no_report(
    make_model: Model, make_data: Data, make_engine: Engines, options: dict[str, Any]
) -> None:
    model = make_model(**options)
    make_engine(max_epochs=2).fit(model, datamodule=make_data())
    assert model.training_report() is None


def test_who_met_whom_is_known_by_path() -> None:
    met = torch.tensor([[1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]]).bool()  # two students, three images of two tiles
    found = met_before(["a", "b", "c"], met, ["c", "new", "a"], 2, 2)
    assert found.int().tolist() == [[0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert met_before([], None, ["a", "b"], 3).sum() == 0
    assert met_before(["b"], None, ["a", "b"], 2).tolist() == [[False, True], [False, True]]


def test_a_model_that_was_trained_before_says_nothing_out_of_sample(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    make_engine(max_epochs=2).fit(model, datamodule=make_data())
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    assert model.training_report() is not None
    assert "has been trained before" not in caplog.text
    loaded = Cdd.load_from_checkpoint(checkpoint)
    for again in (model, loaded):
        caplog.clear()
        make_engine(max_epochs=2).fit(again, datamodule=make_data())
        assert again.training_report() is None
        assert "has been trained before" in caplog.text


def test_a_copy_of_a_trained_model_says_nothing_out_of_sample(
    make_model: Model, make_data: Data, make_engine: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    fresh = copy.deepcopy(model)
    make_engine(max_epochs=1).fit(model, datamodule=make_data())
    copied = copy.deepcopy(model)
    make_engine(max_epochs=1).fit(copied, datamodule=make_data())
    assert copied.training_report() is None
    assert "has been trained before" in caplog.text
    caplog.clear()
    make_engine(max_epochs=1).fit(fresh, datamodule=make_data())
    assert fresh.training_report() is not None
    assert "has been trained before" not in caplog.text


def test_every_fit_counts_however_it_ended(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    model, data = make_model(), make_data()

    class Stop(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_engine(max_epochs=1, callbacks=[Stop()]).fit(model, datamodule=data)
    assert model.training_history is None
    others = make_data(max_normal=4, noise_ratio=0)
    make_engine(max_epochs=1).fit(model, datamodule=others)
    assert model.training_report() is None
    # of the first fit's images it has learned too, and a checkpoint knows
    loaded, checkpoint = make_model(), {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    loaded.on_load_checkpoint(checkpoint)
    make_engine(max_epochs=1).fit(loaded, datamodule=make_data())
    assert loaded.training_report() is None


def test_a_training_that_goes_on_with_fewer_images_knows_who_has_learned_from_them(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> None:
    model, data = make_model(domain_interval=1), make_data()
    make_engine(max_epochs=2).fit(model, datamodule=data)
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    images = data.train_data.samples["image_path"].tolist()
    (tmp_path / "bad.csv").write_text(f"image_path\n{Path(images[3]).relative_to(data.root)}\n")
    fewer, fewer_data = make_model(domain_interval=1), make_data(exclude=tmp_path / "bad.csv")
    make_engine(max_epochs=3).fit(fewer, datamodule=fewer_data, ckpt_path=checkpoint)
    assert fewer_data.train_data.samples["image_path"].tolist() == images[:3] + images[4:]
    scores = fewer.training_history.cross_domain[2]
    assert len(scores) == len(images) - 1
    # each stays with the student that has learned from it, and is judged by the other
    assert scores.isfinite().all()
    assert fewer.training_report() is not None


def test_an_image_that_is_new_joins_the_smallest_fold_or_its_copy(
    make_model: Model, make_engine: Engines, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    for number in range(7):
        save(make_sample(number).image, folder / f"{number}.png")
    options = {"normal_dir": ".", "noise_ratio": 0, "test_split_mode": "none", "val_split_mode": "none"}

    def fit(max_epochs: int, ckpt_path: Path | None = None) -> dict[str, int]:
        model = make_model()
        data = FolderNoisy(name="parts", root=folder, num_workers=0, train_batch_size=4, **options)
        make_engine(max_epochs=max_epochs).fit(model, datamodule=data, ckpt_path=ckpt_path)
        assert model.training_report() is not None
        images, (_, fold_of) = data.train_data.samples["image_path"], model._others._folds
        return {Path(path).name: int(fold) for path, fold in zip(images, fold_of, strict=True)}

    before = fit(1)
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    (folder / "3.png").unlink()
    save(make_sample(99).image, folder / "9.png")
    shutil.copy(folder / "0.png", folder / "copy.png")
    after = fit(3, checkpoint)
    assert {name: fold for name, fold in after.items() if name in before} == {
        name: fold for name, fold in before.items() if name != "3.png"
    }
    assert after["copy.png"] == before["0.png"]
    sizes = np.bincount([fold for name, fold in after.items() if name in before])
    assert sizes[after["9.png"]] == sizes.min()


def test_tiles_of_one_image_are_of_one_domain(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    model, tiler = make_model(), TilerConfigurationCallback(enable=True, tile_size=32, stride=16)
    make_engine(max_epochs=1, callbacks=[tiler]).fit(model, datamodule=make_data())
    _, fold_of = model._others._folds
    by_image = fold_of.view(IMAGES, 9)
    assert (by_image == by_image[:, :1]).all()
    assert set(by_image[:, 0].tolist()) == {0, 1}
    assert model.training_report() is not None


def test_an_image_that_a_pass_leaves_out_costs_the_others_no_report(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    model, data = make_model(cache=False), make_data(train_batch_size=7)
    make_engine(max_epochs=6).fit(model, datamodule=data)
    assert len(data.train_data) % 7 == 1
    assert all(scale.isfinite().all() for scale in model.training_history.scale)
    assert model.training_report() is not None


def test_the_previous_student_of_each_epoch_chooses_among_candidates(
    make_model: Model, make_data: Data, make_engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a resumed training has forgotten what an earlier one chose, also where no domain student learns in between
    model = make_model(domains=[3])
    chosen: set[int] = set()

    def record(*levels: Any) -> torch.Tensor:
        chosen.add(model.current_epoch)
        return similarity(*levels)

    monkeypatch.setattr("anomalib_cdd.models.cdd.training_set.similarity", record)
    make_engine(max_epochs=4).fit(model, datamodule=make_data())
    assert chosen == {0, 1, 2, 3}


def met_by(students: StudentsInTraining, parts: list[list[int]], confident: list[int]) -> list[list[int]]:
    """Whom the global student and the domain students have met after an epoch with these domains."""
    domains = Domains(torch.tensor(confident, dtype=torch.long), tuple(map(torch.tensor, parts)), shared=True)
    plan = SimpleNamespace(domains=len(parts), learns=True, across=True)
    students.meet(domains, plan, SimpleNamespace(confident_patches=0.0, confident_distillation=True))
    whole = students.state_dict(0, [])["met"]
    assert torch.equal(~whole[1:], students.unmet)
    return [row.nonzero().flatten().tolist() for row in whole]


def test_who_has_learned_from_a_confident_image_has_met_its_copies() -> None:
    students = StudentsInTraining()
    students.begin(list("uvwxyz"), ["same", "same", "1", "2", "3", "4"], 1, 2)
    # sample 1 is the confident sample 0 once more, in the fold of the second student alone
    assert met_by(students, [[2, 3], [1, 4, 5]], [0]) == [[0, 1], [0, 1, 2, 3], [0, 1, 4, 5]]


def test_who_has_learned_from_a_tile_of_an_image_has_met_the_image() -> None:
    students = StudentsInTraining()
    students.begin(list("xyz"), list("123"), 2, 2)
    assert met_by(students, [[1, 2, 3], [4, 5]], [0]) == [[0, 1], [0, 1, 2, 3], [0, 1, 4, 5]]


def test_what_a_student_knows_reaches_the_global_student_when_folds_are_drawn_anew() -> None:
    students = StudentsInTraining()
    students.begin(list("uvwxyz"), list("123456"), 1, 3)
    assert met_by(students, [[0, 1, 2], [3, 4, 5]], [])[0] == []
    # sample 1 is the second student's now, and the first, who says what is normal in it, was trained on it before
    assert met_by(students, [[0, 3], [1, 4], [2, 5]], [])[0] == [1, 2, 3, 5]
