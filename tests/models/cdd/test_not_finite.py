# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity end a training with one line that says where, and spoil no checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from anomalib_cdd import Cdd, MVTecNoisy
from anomalib_cdd.models.cdd.features import TeacherFeatures
from anomalib_cdd.models.cdd.training_set import TrainingSet
from anomalib_cdd.teachers.students import Student
from anomalib_cdd.training.finite import NotFiniteError

Model = Callable[..., Cdd]
Data = Callable[..., MVTecNoisy]
Engines = Callable[..., Engine]

SPOILT_EPOCH = 2


@pytest.fixture
def diverge(
    make_image_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Train until it diverges; return the error's message and the checkpoint that is left."""

    def run(model: Cdd | None = None, **options: Any) -> tuple[str, dict[str, Any]]:
        with pytest.raises(NotFiniteError) as raised:
            make_engine(4).fit(model or make_image_model(**options), datamodule=make_data())
        [checkpoint] = (tmp_path / "results").rglob("*.ckpt")
        return str(raised.value), torch.load(checkpoint, weights_only=True)

    return run


def is_sound(checkpoint: dict[str, Any], model: Cdd) -> bool:
    model.load_state_dict(checkpoint["state_dict"])
    # thresholds are unknown, NaN, until the last epoch
    weights = [value for name, value in checkpoint["state_dict"].items() if name.startswith("model.")]
    return len(weights) > 100 and all(value.isfinite().all() for value in weights)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("stage", ["domain", "global", "confident"])
def test_a_loss_names_epoch_stage_and_ways_out_and_the_last_checkpoint_is_sound(
    diverge: Callable[..., tuple[str, dict[str, Any]]],
    make_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    bad: float,
) -> None:
    update = Cdd.optimize
    stepped = []

    def spoilt(model: Cdd, optimizer: Any, loss: Tensor, at: str) -> None:
        if at == stage and model.current_epoch == SPOILT_EPOCH:
            loss = loss * bad
            monkeypatch.setattr(optimizer, "step", lambda: stepped.append(at), raising=False)
        update(model, optimizer, loss, at)

    monkeypatch.setattr(Cdd, "optimize", spoilt)
    message, checkpoint = diverge()
    assert message.startswith(f"Training diverged in epoch {SPOILT_EPOCH} (the first is 0), stage {stage}: loss is")
    assert "\n" not in message
    for way_out in ("learning_rate (it is 0.005)", "relative_noise", "precision"):
        assert way_out in message
    assert checkpoint["epoch"] == SPOILT_EPOCH - 1
    assert is_sound(checkpoint, make_model())
    assert not stepped


def test_a_last_step_that_spoils_the_weights_is_not_saved(
    diverge: Callable[..., tuple[str, dict[str, Any]]], make_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of an epoch's last step is finite, its gradient is not: no later loss tells."""
    remember = Cdd.on_epoch_trained

    def spoilt(model: Cdd) -> None:
        if model.current_epoch == SPOILT_EPOCH:
            with torch.no_grad():
                parameter = next(model.model.student.parameters())
                parameter[(0,) * parameter.ndim] = torch.nan
        remember(model)

    monkeypatch.setattr(Cdd, "on_epoch_trained", spoilt)
    message, checkpoint = diverge()
    assert message.startswith(f"Training diverged in epoch {SPOILT_EPOCH} (the first is 0), after its last step: the")
    assert checkpoint["epoch"] == SPOILT_EPOCH - 1
    assert is_sound(checkpoint, make_model())


@pytest.mark.parametrize("cache", [True, False])
def test_the_previous_student_s_recall_is_named(
    diverge: Callable[..., tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    recall, epochs = TrainingSet.recall, []

    def spoilt(data: TrainingSet, previous: Student, needed: bool) -> None:
        epochs.append(previous)
        if len(epochs) == SPOILT_EPOCH + 1:
            previous.register_forward_hook(lambda student, _, levels: [level * torch.inf for level in levels])
        recall(data, previous, needed)

    monkeypatch.setattr(TrainingSet, "recall", spoilt)
    message, _ = diverge(cache=cache)
    where = f"Training diverged in epoch {SPOILT_EPOCH} (the first is 0), the previous student's recall: "
    assert message.startswith(where)


def test_targets_are_named(diverge: Callable[..., tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    targets, epochs = TrainingSet.targets, []

    def spoilt(data: TrainingSet, students: list[Student], *args: Any) -> Any:
        epochs.append(students)
        if len(epochs) == SPOILT_EPOCH + 1:
            students[1].register_forward_hook(lambda student, _, levels: [level * torch.inf for level in levels])
        return targets(data, students, *args)

    monkeypatch.setattr(TrainingSet, "targets", spoilt)
    message, _ = diverge()
    where = f"Training diverged in epoch {SPOILT_EPOCH} (the first is 0), the pseudo-normal targets: "
    assert message.startswith(where + "features are not finite in bfloat16")


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, 1e6])
def test_the_image_of_which_the_teacher_says_no_number_is_named(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    cache: bool,
    bad: float,
) -> None:
    if not cache and bad == 1e6:
        pytest.skip("too large for the cache alone")
    init = TeacherFeatures.__init__

    def spoilt(features: TeacherFeatures, loader: Any, extract: Callable[[Any], list[Tensor]], *args: Any) -> None:
        def spoil(batch: Any) -> list[Tensor]:
            levels = extract(batch)
            for i, path in enumerate(batch.image_path):
                if Path(path).name == "005.png" and "train" in path:
                    levels[1][i, 0, 0, 0] = bad
            return levels

        init(features, loader, spoil, *args)

    monkeypatch.setattr(TeacherFeatures, "__init__", spoilt)
    precision = "float16" if cache else "float32"
    with pytest.raises(NotFiniteError, match=rf"not finite in {precision} for \S*train/good/005\.png\. If") as raised:
        make_engine(1).fit(make_model(cache=cache), datamodule=make_data())
    assert str(raised.value).count(".png") == 1


def test_what_a_failed_fit_has_given_back_is_in_no_checkpoint(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> None:
    class Stops(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Cdd) -> None:
            if trainer.current_epoch == 1:
                raise KeyError

    engine, model = make_engine(3, callbacks=[Stops()]), make_model()
    with pytest.raises(KeyError):
        engine.fit(model, datamodule=make_data())
    with pytest.raises(RuntimeError, match="take its last checkpoint"):
        engine.trainer.save_checkpoint(tmp_path / "between.ckpt")


def test_a_fit_that_fails_gives_back_what_it_held(
    diverge: Callable[..., tuple[str, dict[str, Any]]],
    make_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    update = Cdd.optimize

    def spoil(model: Cdd, optimizer: Any, loss: Tensor, stage: str) -> None:
        assert model.training_set is not None
        update(model, optimizer, loss * (torch.nan if model.current_epoch == SPOILT_EPOCH else 1), stage)

    monkeypatch.setattr(Cdd, "optimize", spoil)
    model = make_model()
    diverge(model)
    with pytest.raises(RuntimeError, match="no training set outside a fit"):
        _ = model.training_set
    # and is of half an epoch still
    with pytest.raises(RuntimeError, match="Epoch 2 is under way"):
        model.trainer.save_checkpoint(tmp_path / "half.ckpt")
