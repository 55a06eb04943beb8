# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from anomalib_cdd import Cdd, MVTecNoisy
from anomalib_cdd.evaluation.settings import training_ranking
from anomalib_cdd.models.cdd import lightning_model
from anomalib_cdd.models.cdd.history import TrainingHistory
from anomalib_cdd.models.cdd.training_set import TrainingSet

Model, Data, Engines = Callable[..., Cdd], Callable[..., MVTecNoisy], Callable[..., Engine]
IMAGES = 15


def test_suspicion_is_by_hand_the_mean_of_standardised_epochs() -> None:
    nan = torch.nan
    history = TrainingHistory(["a", "b", "c", "d"])
    assert history.suspicion() is None
    # an epoch that asked nobody, one with mean 4 and standard deviation 2, one with 0.4 and 0.08; d is never scored
    for epoch, scores in enumerate(([nan] * 4, [4 - 6**0.5, 4, 4 + 6**0.5, nan], [0.5, 0.3, 0.4, nan])):
        history.record(epoch, torch.zeros(4), torch.tensor(scores))
    # the first epoch that was asked counts as much as the second, whose scores are far smaller
    deviations = [[-(1.5**0.5), 0, 1.5**0.5], [1.5**0.5, -(1.5**0.5), 0]]
    means = [sum(each) / 2 for each in zip(*deviations, strict=True)]
    spread = (0.02 / 3) ** 0.5
    expected = [0.4 + spread * mean for mean in means]
    assert history.suspicion().tolist() == pytest.approx([*expected, min(expected)])
    history.record(3, torch.zeros(4), torch.tensor([0.1, 0.3, nan, nan]))
    ranks = history.suspicion().argsort(descending=True).tolist()
    assert ranks[0] == 2  # by the epochs that have scored it
    # a resume from epoch 2 writes it again
    history.record(2, torch.ones(4), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert len(history.confidence) == len(history.cross_domain) == 3
    assert not history.suspicion().isnan().any()
    history.record(5, torch.ones(4), torch.ones(4))
    assert history.confidence[3].isnan().all()
    # an epoch in which all are alike says nothing
    assert history.suspicion().argmax() == 3
    silent = TrainingHistory(["a"])
    silent.record(0, torch.tensor([1.0]), torch.tensor([nan]))
    assert silent.suspicion() is None


def test_agreement_is_the_rank_correlation_of_two_epochs() -> None:
    history = TrainingHistory(list("abcde"))
    for epoch, scores in enumerate(([5.0, 1.0, 2.0, 3.0, 4.0], [9.0, 0.2, 0.1, 0.4, torch.nan])):
        assert history.agreement() == 0
        history.record(epoch, torch.zeros(5), torch.tensor(scores))
    # ranks 4 1 2 3 and 4 2 1 3: 1 - 6 (1 + 1) / (4 * 15)
    assert history.agreement() == pytest.approx(0.8)
    history.record(2, torch.zeros(5), torch.full((5,), torch.nan))
    assert history.agreement() == 0


def test_a_training_can_stop_once_the_ranking_stays(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    def scores(threshold: float) -> list[Tensor]:
        stop = EarlyStopping("epoch_ranking_agreement", mode="max", patience=9, stopping_threshold=threshold)
        engine, model = make_engine(max_epochs=5, callbacks=[stop]), make_model()
        engine.fit(model, datamodule=make_data())
        assert model.post_processor.image_threshold.isfinite()
        return model.training_history.cross_domain

    whole = scores(threshold=1.0)
    assert len(whole) == 5
    agreements = [float(spearman_corrcoef(*pair)) for pair in pairwise(whole)]
    enough = sorted(agreements)[1]  # of four the second lowest: an epoch before the last has it
    reached = next(epoch for epoch, agreement in enumerate(agreements, 1) if agreement > enough - 1e-6 > 0)
    assert len(scores(threshold=enough - 1e-6)) == reached + 1 < 5


@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize("visited", ["each", "once"])
@pytest.mark.parametrize("count", [2, 3])
def test_cross_domain_scores_are_by_hand_those_of_other_domains_students(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    visited: str,
    count: int,
) -> None:
    expected: list[Tensor] = []
    partition, targets = lightning_model.partition, TrainingSet.targets
    drawn: list[Any] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        drawn.append(partition(*args, **kwargs))
        return drawn[-1]

    def by_hand(training_set: TrainingSet, students: list[Any], *args: Any) -> Any:
        [teacher] = training_set.teacher([torch.arange(IMAGES)])
        with torch.no_grad():
            scores = torch.stack([training_set._score(teacher, student(teacher)) for student in students])
        own = torch.full((IMAGES,), -1)
        for k, part in enumerate(drawn[-1].parts):
            own[part] = k
        counts = torch.arange(count)[:, None] != own
        expected.append((scores * counts).sum(dim=0) / counts.sum(dim=0))
        return targets(training_set, students, *args)

    monkeypatch.setattr(lightning_model, "partition", record)
    monkeypatch.setattr(TrainingSet, "targets", by_hand)
    model = make_model(domains=(count,), cache=cache, confident_visits=visited, learning_rate=0.05)
    make_engine(max_epochs=3).fit(model, datamodule=make_data())
    assert len(drawn[-1].confident) > 1
    for said, by_student in zip(model.training_history.cross_domain, expected, strict=True):
        close = torch.isclose(said, by_student, atol=1e-5)
        # without a cache they are asked while training, which drops a last batch of one visit
        assert (~close).sum() <= (0 if cache == "auto" else 1)


def test_history_is_saved_resumed_and_ranks_the_training_set(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> None:
    model, data = make_model(), make_data()
    make_engine(max_epochs=3).fit(model, datamodule=data)
    history = model.training_history
    assert history.image_paths == data.train_data.samples["image_path"].tolist()
    assert len(history.confidence) == len(history.cross_domain) == 3
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    loaded = Cdd.load_from_checkpoint(checkpoint)
    assert loaded.training_suspicion() == model.training_suspicion()
    ranking = training_ranking(loaded, data, progress=False)
    assert ranking["score"].tolist() == pytest.approx(sorted(model.training_suspicion().values(), reverse=True))
    assert not ranking["score"].equals(ranking["model_score"])
    # what an export pickles has no training in it
    assert pickle.loads(pickle.dumps(model)).training_history is None  # noqa: S301
    engine = make_engine(max_epochs=4)
    resumed = make_model()
    engine.fit(resumed, datamodule=make_data(), ckpt_path=checkpoint)
    assert len(resumed.training_history.confidence) == 4
    assert torch.equal(resumed.training_history.confidence[2], history.confidence[2])


def test_reverse_distillation_has_no_students_of_other_domains_to_ask(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    model, data = make_model(pseudo_normal=False, domain_construction=False), make_data()
    make_engine(max_epochs=1).fit(model, datamodule=data)
    assert model.training_suspicion() is None
    ranking = training_ranking(model, data, progress=False)
    assert ranking["score"].equals(ranking["model_score"])
