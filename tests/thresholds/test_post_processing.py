# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds and normalisation come from the training images alone, for any model, and live in its checkpoint."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint as OnlyCheckpoint
from anomalib.data import InferenceBatch
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, RandomHorizontalFlip, Resize

from anomalib_cdd import Cdd, LabelFreePostProcessor, MVTecNoisy, ReContrast
from anomalib_cdd.evaluation.measures import auroc
from anomalib_cdd.evaluation.predictions import score_dataset
from anomalib_cdd.thresholds.calibration import keeps_patches, sample_pixels
from anomalib_cdd.thresholds.estimators import label_free_pixel_threshold, label_free_threshold
from anomalib_cdd.training.report import TrainingReport, report_of

Engines = Callable[..., Engine]


@pytest.fixture
def make_engine(tmp_path: Path) -> Engines:
    def make(**options: Any) -> Engine:
        defaults = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "max_epochs": 1}
        defaults |= {"enable_model_summary": False, "default_root_dir": tmp_path / "results"}
        return Engine(**{**defaults, **options})

    return make


def pre_processor() -> PreProcessor:
    return PreProcessor(Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)]))


def make_model(name: str, post_processor: Any) -> Any:
    seed_everything(0, verbose=False)
    common = {"pre_trained": False, "visualizer": False, "pre_processor": pre_processor(), "evaluator": False}
    common["post_processor"] = post_processor
    if name == "Cdd":
        return Cdd(backbone="test_resnet", student_width=8, **common)
    if name == "Patchcore":
        return Patchcore(backbone="resnet18", layers=["layer1"], coreset_sampling_ratio=0.05, **common)
    return Padim(backbone="resnet18", layers=["layer1"], n_features=4, **common)


def make_data(root: Path, **options: Any) -> MVTecNoisy:
    defaults = {"noise_ratio": 0.25, "val_split_mode": "none", "train_batch_size": 4, "eval_batch_size": 4}
    return MVTecNoisy(**{**defaults, "root": root, "category": "bottle", "num_workers": 0, **options})


@pytest.mark.parametrize("name", ["Cdd", "Patchcore", "Padim"])
def test_any_model_is_saved_with_thresholds_of_its_training_images(
    make_engine: Engines, mvtec_root: Path, name: str, tmp_path: Path
) -> None:
    data, post_processor = (
        make_data(mvtec_root),
        LabelFreePostProcessor(false_alarm_rate=0.4, pixel_false_alarm_rate=0.3),
    )
    model = make_model(name, post_processor)
    make_engine().fit(model, datamodule=data)
    mirror = RandomHorizontalFlip(1) if name == "Patchcore" else None
    train = score_dataset(model, data.train_data, augmentations=mirror, keep_maps=True, progress=False)
    pixels = sample_pixels(torch.from_numpy(train.maps)).numpy()
    report = report_of(model, train.image_paths)
    assert (report is not None) == (name == "Cdd")  # which knows scores out of sample
    scores = train.scores if report is None else report.scores
    expected = {
        "_image_threshold": label_free_threshold(scores, 0.4),
        "_pixel_threshold": label_free_pixel_threshold(pixels, scores, 0.3),
    }
    checkpoint = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=name == "Cdd")
    for key, value in expected.items():
        close = pytest.approx(value, rel=1e-4)
        assert getattr(post_processor, key).item() == close
        assert checkpoint["state_dict"][f"post_processor.{key}"].item() == close
    assert checkpoint["anomalib_post_processor_config"]["false_alarm_rate"] == 0.4


@pytest.mark.parametrize("name", ["Cdd", "Patchcore"])
def test_scores_keep_their_ranking_and_labels_survive_a_reload(
    make_engine: Engines, mvtec_root: Path, name: str, tmp_path: Path
) -> None:
    data, engine = make_data(mvtec_root), make_engine()
    model = make_model(name, LabelFreePostProcessor())
    engine.fit(model, datamodule=data)
    raw = score_dataset(model, data.test_data, progress=False)
    batches = engine.predict(model, dataloaders=data.test_dataloader())
    scores = torch.cat([batch.pred_score.flatten() for batch in batches]).numpy()
    labels = torch.cat([batch.pred_label.flatten() for batch in batches]).numpy()
    assert ((scores > 0) & (scores < 1)).all()
    assert auroc(scores[raw.labels == 1], scores[raw.labels == 0]) == pytest.approx(
        auroc(raw.scores[raw.labels == 1], raw.scores[raw.labels == 0])
    )
    assert np.array_equal(labels, raw.scores > model.post_processor.image_threshold.item())
    assert np.array_equal(labels, scores > 0.5)
    # anomalib's own post-processor, should it read the checkpoint, gives the same labels
    stock = make_model(name, PostProcessor())
    again = make_engine().predict(stock, dataloaders=data.test_dataloader(), ckpt_path=next(tmp_path.rglob("*.ckpt")))
    assert np.array_equal(torch.cat([batch.pred_label.flatten() for batch in again]).numpy(), labels)


def test_labels_of_a_validation_set_change_nothing(make_engine: Engines, mvtec_root: Path) -> None:
    thresholds = []
    for mode in ("none", "same_as_test"):
        model = make_model("Padim", LabelFreePostProcessor())
        make_engine().fit(model, datamodule=make_data(mvtec_root, val_split_mode=mode))
        thresholds.append(model.post_processor.image_threshold.item())
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-5)


@pytest.mark.parametrize("known", ["all", "some"])
def test_scores_of_the_training_report_come_first(make_engine: Engines, mvtec_root: Path, known: str) -> None:
    data, model = make_data(mvtec_root), make_model("Padim", LabelFreePostProcessor())
    data.setup()
    paths = data.train_data.samples["image_path"].tolist()
    report = TrainingReport(paths[::-1], np.arange(len(paths), dtype=np.float32) + 100)
    if known == "some":
        report.scores[3] = np.nan
    model.training_report = lambda: report
    make_engine().fit(model, datamodule=data)
    own = score_dataset(model, data.train_data, keep_maps=True, progress=False)
    scores = report.scores if known == "all" else own.scores
    assert model.post_processor.image_threshold.item() == pytest.approx(label_free_threshold(scores, 0.05), rel=1e-4)
    # maps are the model's own either way
    assert model.post_processor.pixel_threshold.item() <= own.maps.max()


@pytest.mark.parametrize("name", ["Cdd", "Patchcore", "Padim"])
def test_what_cleaning_left_out_counts_for_thresholds(make_engine: Engines, mvtec_root: Path, name: str) -> None:
    data = make_data(mvtec_root, clean={"share": 0.3, "image_size": (64, 64)})
    model = make_model(name, LabelFreePostProcessor(false_alarm_rate=0.4, pixel_false_alarm_rate=0.3))
    make_engine().fit(model, datamodule=data)
    whole = make_data(mvtec_root)
    whole.setup()
    gone = [path for path, left_out in zip(data.cleaned.image_paths, data.cleaned.left_out, strict=True) if left_out]
    assert len(gone) == 4
    samples = whole.train_data.samples
    whole.train_data.samples = samples[samples["image_path"].isin(gone)].reset_index(drop=True)
    mirror = RandomHorizontalFlip(1) if name == "Patchcore" else None
    kept = score_dataset(model, data.train_data, augmentations=mirror, keep_maps=True, progress=False)
    # whoever has not learned from an image sees it as it is
    others = score_dataset(model, whole.train_data, keep_maps=True, progress=False)
    report = report_of(model, kept.image_paths)
    scores = np.concatenate([kept.scores if report is None else report.scores, others.scores])
    pixels = np.concatenate([sample_pixels(torch.from_numpy(each.maps)).numpy() for each in (kept, others)])
    assert len(scores) == 15
    assert model.post_processor.image_threshold.item() == pytest.approx(label_free_threshold(scores, 0.4), rel=1e-4)
    cut = label_free_pixel_threshold(pixels, scores, 0.3)
    assert model.post_processor.pixel_threshold.item() == pytest.approx(cut, rel=1e-4)


def test_which_models_keep_patches_is_declared() -> None:
    assert keeps_patches(make_model("Patchcore", False))
    # a memory bank of statistics
    assert not keeps_patches(make_model("Padim", False))
    model = make_model("Cdd", False)
    assert not keeps_patches(model)
    model.keeps_patches = True
    assert keeps_patches(model)


def test_a_fit_without_a_datamodule_has_thresholds_too(make_engine: Engines, mvtec_root: Path) -> None:
    thresholds = []
    for whole in (True, False):
        data, model = make_data(mvtec_root), make_model("Cdd", True)
        data.setup()
        loader = {"datamodule": data} if whole else {"train_dataloaders": data.train_dataloader()}
        make_engine().fit(model, **loader)
        assert type(model.post_processor) is LabelFreePostProcessor
        thresholds.append(model.post_processor.image_threshold.item())
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-4)


def test_other_training_data_has_none_and_says_so(
    make_engine: Engines, mvtec_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data(mvtec_root)
    data.setup()
    items = [data.train_data[i] for i in range(8)]
    model = make_model("Cdd", LabelFreePostProcessor())
    with caplog.at_level("WARNING"):
        make_engine().fit(model, train_dataloaders=DataLoader(items, 4, collate_fn=data.train_data.collate_fn))
    assert "No thresholds: the training data is a list" in caplog.text
    assert model.post_processor.image_threshold.isnan()


def test_a_loader_that_cannot_be_read_again_costs_no_training(
    make_engine: Engines, mvtec_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data(mvtec_root)
    data.setup()
    batches = [[0, 1, 2, 3], [4, 5, 6, 7]]
    loader = DataLoader(data.train_data, batch_sampler=batches, collate_fn=data.train_data.collate_fn)
    model = make_model("Padim", LabelFreePostProcessor())
    with caplog.at_level("WARNING"):
        make_engine().fit(model, train_dataloaders=loader)
    assert "there are no thresholds" in caplog.text
    assert model.post_processor.image_threshold.isnan()


def test_only_the_last_epoch_is_calibrated(
    make_engine: Engines, mvtec_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    calibrate = LabelFreePostProcessor.calibrate

    def record(self: LabelFreePostProcessor, model: Any, *args: Any, **kwargs: Any) -> None:
        epochs.append(model.current_epoch)
        calibrate(self, model, *args, **kwargs)

    monkeypatch.setattr(LabelFreePostProcessor, "calibrate", record)
    make_engine(max_epochs=3).fit(make_model("Cdd", True), datamodule=make_data(mvtec_root))
    assert epochs == [2]


def thresholds(folder: Path) -> dict[str, bool]:
    """Whether each checkpoint has thresholds."""
    found = {}
    for path in folder.rglob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        found[path.stem] = bool(state["post_processor._image_threshold"].isfinite())
    return found


def test_a_checkpoint_that_a_measure_chooses_has_thresholds(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path
) -> None:
    best = ModelCheckpoint(tmp_path, "best-{epoch}", monitor="train_loss_global", mode="min", save_top_k=-1)
    make_engine(max_epochs=3, callbacks=[best]).fit(make_model("Cdd", True), datamodule=make_data(mvtec_root))
    assert thresholds(tmp_path) == {f"best-epoch={epoch}": True for epoch in range(3)} | {"model": True}


def test_the_last_checkpoint_of_every_few_epochs_has_thresholds(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path
) -> None:
    some = ModelCheckpoint(tmp_path, "some-{epoch}", every_n_epochs=2)
    make_engine(max_epochs=3, callbacks=[some]).fit(make_model("Cdd", True), datamodule=make_data(mvtec_root))
    assert thresholds(tmp_path) == {"some-epoch=1": True, "model": True}


@pytest.mark.parametrize("some", [{"save_top_k": -1}, {"every_n_train_steps": 1}])
def test_every_checkpoint_that_is_kept_has_thresholds(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path, some: dict[str, int]
) -> None:
    kept = OnlyCheckpoint(dirpath=tmp_path, filename="kept-{epoch}", **some)
    seed_everything(0, verbose=False)
    small = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False, "audit": False}
    model = ReContrast(**small, pre_processor=pre_processor())
    make_engine(max_epochs=2, callbacks=[kept]).fit(model, datamodule=make_data(mvtec_root, train_batch_size=16))
    found = thresholds(tmp_path)
    assert found
    assert all(found.values())


def test_the_last_checkpoint_has_thresholds_where_not_every_epoch_is_validated(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path
) -> None:
    data = make_data(mvtec_root, val_split_mode="same_as_test")
    make_engine(max_epochs=3, check_val_every_n_epoch=2).fit(make_model("Cdd", True), datamodule=data)
    assert thresholds(tmp_path) == {"model": True}


def test_a_fit_that_goes_on_forgets_the_thresholds_of_before(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path
) -> None:
    make_engine(max_epochs=1).fit(make_model("Cdd", True), datamodule=make_data(mvtec_root))
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert thresholds(tmp_path) == {"model": True}

    class Stops(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyError

    engine = make_engine(max_epochs=3, callbacks=[Stops()], default_root_dir=tmp_path / "more")
    with pytest.raises(KeyError):
        engine.fit(make_model("Cdd", True), datamodule=make_data(mvtec_root), ckpt_path=checkpoint)
    assert thresholds(tmp_path / "more") == {"model": False}


def test_a_training_of_so_many_steps_has_thresholds_once(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    calibrate = LabelFreePostProcessor.calibrate

    def record(self: LabelFreePostProcessor, model: Any, *args: Any, **kwargs: Any) -> None:
        steps.append(model.global_step)
        calibrate(self, model, *args, **kwargs)

    monkeypatch.setattr(LabelFreePostProcessor, "calibrate", record)
    seed_everything(0, verbose=False)
    small = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False, "audit": False}
    model = ReContrast(**small, pre_processor=pre_processor())
    make_engine(max_epochs=-1, max_steps=10).fit(model, datamodule=make_data(mvtec_root))
    assert steps == [10]
    assert thresholds(tmp_path) == {"model": True}


def test_a_checkpoint_of_a_fit_that_had_not_ended_says_that_it_has_no_thresholds(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stops(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyError

    with pytest.raises(KeyError):
        make_engine(max_epochs=3, callbacks=[Stops()]).fit(make_model("Cdd", True), datamodule=make_data(mvtec_root))
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert thresholds(tmp_path) == {"model": False}
    make_engine().predict(make_model("Cdd", True), datamodule=make_data(mvtec_root), ckpt_path=checkpoint)
    assert "has no thresholds" in caplog.text
    caplog.clear()
    engine, whole = make_engine(max_epochs=3), make_model("Cdd", True)
    engine.fit(whole, datamodule=make_data(mvtec_root), ckpt_path=checkpoint)
    engine.test(whole, datamodule=make_data(mvtec_root))
    assert "has no thresholds" not in caplog.text


def test_weights_alone_are_said_to_have_none(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = ModelCheckpoint(tmp_path, "weights", save_weights_only=True, every_n_epochs=2)
    make_engine(callbacks=[weights]).fit(
        make_model("Padim", LabelFreePostProcessor()), datamodule=make_data(mvtec_root)
    )
    assert "save_weights_only have no thresholds" in caplog.text


def test_scoring_leaves_every_part_in_the_mode_that_it_was_in(mvtec_root: Path) -> None:
    model, data = make_model("Cdd", True), make_data(mvtec_root)
    data.setup()
    model.train()
    model.model.student.eval()
    LabelFreePostProcessor().calibrate(model, data.train_data, progress=False)
    assert model.training
    assert not any(module.training for module in model.model.student.modules())


def test_it_is_part_of_an_export(
    make_engine: Engines, mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    data, engine = make_data(mvtec_root), make_engine()
    model = make_model("Padim", LabelFreePostProcessor())
    engine.fit(model, datamodule=data)
    path = engine.export(model, "torch", export_root=tmp_path)
    expected = engine.predict(model, dataloaders=data.test_dataloader())
    inferencer = TorchInferencer(path=path, device="cpu")
    image = data.test_data.samples["image_path"].iloc[0]
    assert inferencer.predict(image).pred_score.item() == pytest.approx(expected[0].pred_score[0].item(), abs=1e-3)


def test_the_threshold_is_a_half_the_median_a_quarter_and_nothing_ties() -> None:
    post_processor = LabelFreePostProcessor()
    scores = np.exp(np.random.default_rng(0).normal(size=101)).astype(np.float32)
    post_processor.set_thresholds(scores)
    far = torch.tensor([float(np.median(scores)), post_processor.image_threshold.item(), 1e3, 1e4])
    normalized = post_processor(InferenceBatch(pred_score=far)).pred_score
    assert normalized[:2].tolist() == pytest.approx([0.25, 0.5], abs=1e-5)
    assert normalized[2] < normalized[3] < 1
    # without maps the pixel threshold is the image's, as in anomalib
    assert post_processor.pixel_threshold == post_processor.image_threshold


def test_the_pixels_of_a_sample_lie_on_a_grid() -> None:
    maps = torch.arange(2 * 32 * 16).view(2, 32, 16)
    sample = sample_pixels(maps)
    assert sample.shape == (2, 256)
    assert sample[0, :2].tolist() == [16, 17]  # row 1 of 32, columns 0 and 1 of 16
    assert sample[1, 16] == 512 + 3 * 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [0.0, 0.3, 7e4])
def test_constant_scores_are_numbers_in_every_precision(dtype: torch.dtype, value: float) -> None:
    value = min(value, torch.finfo(dtype).max)
    post_processor = LabelFreePostProcessor()
    post_processor.set_thresholds(np.full(20, value, np.float32), np.full((20, 9), value, np.float32))
    post_processor.to(dtype)
    maps = torch.full((2, 1, 8, 8), value, dtype=dtype)
    output = post_processor(InferenceBatch(pred_score=maps.amax(dim=(1, 2, 3)), anomaly_map=maps))
    assert output.pred_score.tolist() == pytest.approx([0.5, 0.5], abs=1e-2)
    assert output.anomaly_map.isfinite().all()
    assert not output.pred_label.any()
    further = post_processor(InferenceBatch(pred_score=torch.tensor([0.0, value * 0.9 + 1], dtype=dtype)))
    assert further.pred_score.isfinite().all()


def test_it_takes_the_place_of_anomalibs() -> None:
    ours, theirs = (
        [(each.name, each.default) for each in inspect.signature(kind).parameters.values()][:5]
        for kind in (LabelFreePostProcessor, PostProcessor)
    )
    assert ours == theirs
    post_processor = LabelFreePostProcessor(enable_threshold_matching=False)
    post_processor.set_thresholds(np.arange(20.0))
    assert post_processor.image_threshold.isfinite()
    assert post_processor.pixel_threshold.isnan()
    again = LabelFreePostProcessor()
    again.load_checkpoint_config(post_processor.checkpoint_config())
    assert not again.enable_threshold_matching


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"false_alarm_rate": 0.0}, r"false_alarm_rate is 0\.0"),
        ({"false_alarm_rate": 0.9}, r"false_alarm_rate is 0\.9"),
        ({"pixel_false_alarm_rate": -1.0}, r"pixel_false_alarm_rate is -1\.0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelFreePostProcessor(**options)
