# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What Lightning lets its users do with a trainer: a second fit, a stop within an epoch, loaders of their own."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import AnomalibDataset
from anomalib.engine import Engine
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler
from torchvision.transforms.v2 import RandomHorizontalFlip

from anomalib_cdd import Cdd, FuadEvaluator, MVTecNoisy

Model = Callable[..., Cdd]
Data = Callable[..., MVTecNoisy]
Engines = Callable[..., Engine]


def test_one_engine_fits_twice(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    model, engine, data = make_model(), make_engine(max_epochs=1), make_data()
    engine.fit(model, datamodule=data)
    engine.trainer.fit_loop.max_epochs = 3
    engine.fit(model, datamodule=data)
    assert engine.trainer.current_epoch == 3


def test_a_fit_that_failed_is_tried_again(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    class Fails(Callback):
        tried = False

        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1 and not self.tried:
                self.tried = True
                msg = "the power is gone"
                raise RuntimeError(msg)

    model, engine, data = make_model(), make_engine(callbacks=[Fails()]), make_data()
    with pytest.raises(RuntimeError, match="the power is gone"):
        engine.fit(model, datamodule=data)
    engine.fit(model, datamodule=data, ckpt_path=engine.best_model_path)
    assert engine.trainer.current_epoch == 2
    assert model.training_report() is not None


def test_a_stop_within_an_epoch_waits_for_its_end(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    class Stops(Callback):
        asked = 0

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.current_epoch == 1 and batch_idx == 0:
                self.asked += 1
                trainer.should_stop = True

    stops = Stops()
    model, engine = make_model(), make_engine(max_epochs=5, callbacks=[stops])
    engine.fit(model, datamodule=make_data())
    assert (stops.asked, engine.trainer.current_epoch) == (1, 2)
    assert model.training_report() is not None
    saved = torch.load(engine.best_model_path, weights_only=True)
    assert saved["epoch"] == 1
    assert saved["state_dict"]["post_processor._image_threshold"].isfinite()


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_fast_run_trains_all_stages(make_model: Model, make_data: Data, make_engine: Engines, batches: int) -> None:
    model, engine = make_model(), make_engine(fast_dev_run=batches)
    engine.fit(model, datamodule=make_data())
    assert {"train_loss_domain", "train_loss_global"} <= set(engine.trainer.callback_metrics)
    assert model.training_history is not None
    assert len(model.training_history.image_paths) == 4 * batches


def test_the_rate_is_the_models_and_not_the_checkpoints(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    data, engine = make_data(), make_engine(max_epochs=1)
    engine.fit(make_model(), datamodule=data)
    slower, going_on = make_model(learning_rate=1e-5), make_engine(max_epochs=2)
    going_on.fit(slower, datamodule=data, ckpt_path=engine.best_model_path)
    rates = {group["lr"] for optimizer in going_on.trainer.optimizers for group in optimizer.param_groups}
    assert rates == {1e-5}


def loader_of(data: MVTecNoisy, dataset: Any = None, **options: Any) -> DataLoader:
    data.setup("fit")
    return DataLoader(dataset or data.train_data, 4, collate_fn=data.train_data.collate_fn, **options)


def test_a_sampler_that_leaves_images_out_is_refused(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    loader = loader_of(make_data(), sampler=SubsetRandomSampler(range(6)))
    with pytest.raises(ValueError, match=r"has a SubsetRandomSampler: .* give a data set of that part\.$"):
        make_engine().fit(make_model(), train_dataloaders=loader)


def test_a_part_of_a_data_set_keeps_its_augmentations(
    make_model: Model, make_data: Data, make_engine: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data(train_augmentations=RandomHorizontalFlip(0.5))
    data.setup("fit")
    loader = loader_of(data, Subset(data.train_data, range(8)))
    with caplog.at_level(logging.WARNING):
        make_engine(max_epochs=1).fit(make_model(), train_dataloaders=loader)
    assert "Teacher features are not cached: the training augmentations may be random." in caplog.text


def test_without_a_cache_no_image_is_read_for_nothing(
    make_model: Model, make_data: Data, make_engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = make_data(), []
    data.setup("fit")
    kind: Any = type(data.train_data)
    original = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda self, index: read.append(index) or original(self, index))
    model = make_model(cache=False, pseudo_normal=False, domain_construction=False, post_processor=False)
    make_engine(max_epochs=2).fit(model, datamodule=data)
    # one image tells the shapes; then one pass an epoch, and one for the scale of the report
    assert len(read) == 1 + 3 * len(data.train_data)


def test_thresholds_and_measures_are_of_the_data_at_hand(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    first, model, engine = make_data(), make_model(), make_engine(max_epochs=1)
    engine.fit(model, datamodule=first)
    images: list[AnomalibDataset] = []

    class Calibrates(Callback):
        def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
            images.append(pl_module.post_processor._images.dataset)

    other = make_data(noise_ratio=0)
    loader = loader_of(other)
    engine.trainer.fit_loop.max_epochs = 2
    engine.trainer.callbacks.append(Calibrates())
    engine.trainer.fit(model, train_dataloaders=loader)
    assert images == [other.train_data]
    model = make_model(evaluator=FuadEvaluator())
    engine.test(model, datamodule=first)
    assert "image_AUROC_overlap" in engine.trainer.callback_metrics
    other.setup("test")
    engine.trainer.test(model, dataloaders=other.test_dataloader())
    assert "image_AUROC_overlap" not in engine.trainer.callback_metrics


def test_a_test_that_fails_leaves_no_listener(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    class Fails(Callback):
        def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
            msg = "the power is gone"
            raise RuntimeError(msg)

    model = make_model(evaluator=FuadEvaluator())
    with pytest.raises(RuntimeError, match="the power is gone"):
        make_engine(callbacks=[Fails()]).test(model, datamodule=make_data())
    assert not model.model._forward_hooks


def test_sizes_are_refused_before_an_image_is_learned(
    make_model: Model, make_data: Data, make_engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = make_model(), []
    teacher = model.model.teacher
    original = teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda images: asked.append(len(images)) or original(images))
    with pytest.raises(ValueError, match="train_batch_size is 1"):
        make_engine().fit(model, datamodule=make_data(train_batch_size=1))
    assert asked == [1]


def test_dropout_of_a_transformers_student_goes_by_the_seed_and_resumes(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    def weights(engine: Engine, draws: int, **fit: Any) -> dict[str, torch.Tensor]:
        model = make_model(backbone="test_vit")
        seed_everything(draws, verbose=False)  # of a loader, say
        engine.fit(model, datamodule=make_data(), **fit)
        return model.model.student.state_dict()

    class Dies(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    whole = weights(make_engine(), draws=0)
    with pytest.raises(BaseException):  # noqa: B017, PT011  # Lightning makes an interrupt an exit
        weights(killed := make_engine(callbacks=[Dies()]), draws=1)
    path = next(Path(killed.trainer.default_root_dir).rglob("*.ckpt"))
    resumed = weights(make_engine(), draws=2, ckpt_path=path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_late_checkpoint_of_an_early_stop_has_thresholds(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> None:
    saves = ModelCheckpoint(dirpath=tmp_path, save_on_train_epoch_end=False)
    stops = EarlyStopping("train_loss_global", min_delta=10, patience=1, check_on_train_epoch_end=True)
    engine = make_engine(max_epochs=9, callbacks=[saves, stops])
    engine.fit(make_model(), datamodule=make_data(val_split_mode="same_as_test"))
    assert engine.trainer.current_epoch < 9
    saved = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)
    assert saved["state_dict"]["post_processor._image_threshold"].isfinite()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precisions_that_no_test_can_follow_are_refused(
    make_model: Model, make_data: Data, make_engine: Engines, precision: str
) -> None:
    with pytest.raises(ValueError, match=f"precision is {precision}: .* Set bf16-mixed or 32-true"):
        make_engine(precision=precision).fit(make_model(), datamodule=make_data())


def test_a_mean_of_weights_is_refused(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    callback = averaging.EMAWeightAveraging(decay=0.9)
    with pytest.raises(ValueError, match="EMAWeightAveraging keeps the mean of the weights"):
        make_engine(callbacks=[callback]).fit(make_model(), datamodule=make_data())


def test_any_number_is_a_seed(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    model = make_model(seed=1_764_345_600_000_000_000)  # nanoseconds since 1970
    make_engine(max_epochs=1).fit(model, datamodule=make_data())
    assert model.training_history is not None
