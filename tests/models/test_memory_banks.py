# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""anomalib's life cycle with SoftPatch and InReaCh, and what their options and their training reports do."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.callbacks.tiler_configuration import TilerConfigurationCallback
from anomalib.data import PredictDataset
from anomalib.data.utils.tiler import ImageUpscaleMode
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, get_model, list_models
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint
from samples import make_sample, save
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import CrossPatch, FolderNoisy, InReach, MVTecNoisy, SoftPatch
from anomalib_cdd.thresholds import label_free_pixel_threshold
from anomalib_cdd.training.image_files import contents_of
from anomalib_cdd.training.memory_bank import PatchFile

# OpenVINO computes in bf16 where the processor can
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
MODELS = [CrossPatch, SoftPatch, InReach]
PYPI = {"backbone": "efficientnet_lite0_pypi", "pre_trained": True}


def make_model(kind: type[AnomalibModule], **options: Any) -> Any:
    seed_everything(0, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    defaults = {"backbone": "test_resnet", "pre_trained": False, "visualizer": False, "audit": False}
    return kind(**{**defaults, "pre_processor": PreProcessor(transform), **options})


def make_data(root: Path, **options: Any) -> MVTecNoisy:
    defaults = {"category": "bottle", "noise_ratio": 0.25, "val_split_mode": "none", "num_workers": 0}
    return MVTecNoisy(root=root, **{**defaults, "train_batch_size": 4, "eval_batch_size": 4, **options})


def make_engine(folder: Path, **options: Any) -> Engine:
    defaults = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "default_root_dir": folder / "results"}
    return Engine(**{**defaults, **options})


def fitted(kind: type[AnomalibModule], root: Path, folder: Path, data: Any = None, **options: Any) -> Any:
    """A model without thresholds, which nothing here reads."""
    model = make_model(kind, post_processor=False, **options)
    make_engine(folder).fit(model, datamodule=make_data(root) if data is None else data)
    return model


def bank_of(model: Any) -> torch.Tensor:
    return getattr(model.model, "bank", model.model).memory_bank


@torch.no_grad()
def raw_scores(model: Any, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    items = [dataset[i] for i in range(len(dataset))]
    images = torch.cat([model.pre_processor.transform(item.image[None]) for item in items])
    return model.eval().model(images).pred_score.numpy(), np.array([int(item.gt_label) for item in items])


class Trained:
    """A model after its epoch of five images in batches of two, and what Lightning predicts with it."""

    def __init__(self, kind: type[AnomalibModule], root: Path, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.model, self.engine = make_model(kind), make_engine(folder)
        self.data = make_data(root, max_normal=4, train_batch_size=2, val_split_mode="same_as_test")
        self.engine.fit(self.model, datamodule=self.data)
        self.checkpoint = Path(self.engine.best_model_path)
        self.images = PredictDataset(path=root / "bottle" / "test")
        batches = self.engine.predict(self.model, dataset=self.images)
        self.scores = {path: float(batch.pred_score[i]) for batch in batches for i, path in enumerate(batch.image_path)}


@pytest.fixture(scope="module", params=MODELS, ids=lambda kind: kind.__name__)
def trained(
    request: pytest.FixtureRequest, mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    return Trained(request.param, mvtec_root, tmp_path_factory.mktemp(request.param.__name__))


def test_five_images_are_fitted_tested_validated_and_resumed(trained: Trained, tmp_path: Path) -> None:
    """What anomalib's own integration test does with every model it lists."""
    assert len(trained.data.train_data) == 5
    assert trained.engine.trainer.current_epoch == 1
    trained.engine.test(trained.model, datamodule=trained.data)
    trained.engine.validate(trained.model, datamodule=trained.data)
    resumed = make_model(trained.kind)
    make_engine(tmp_path).train(resumed, datamodule=trained.data, ckpt_path=trained.checkpoint)
    assert torch.equal(bank_of(resumed), bank_of(trained.model))
    assert trained.engine.predict(resumed, datamodule=trained.data, ckpt_path=trained.checkpoint)


@pytest.mark.parametrize("kind", [ExportType.TORCH, ExportType.ONNX, ExportType.OPENVINO])
def test_exports_score_as_lightning_does(
    trained: Trained, kind: ExportType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained.engine.export(trained.model, kind, export_root=tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    if kind == ExportType.TORCH:
        inferencer = TorchInferencer(path, device="cpu")
    else:
        inferencer = OpenVINOInferencer(path, device="CPU", config=SINGLE_PRECISION)
    for image, score in trained.scores.items():
        assert float(inferencer.predict(image).pred_score.squeeze()) == pytest.approx(score, abs=1e-3)
    assert max(trained.scores.values()) - min(trained.scores.values()) > 0.1


def test_a_checkpoint_keeps_bank_and_report_and_fetches_nothing(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *a, **k: pytest.fail("weights were fetched"))
    loaded = trained.kind.load_from_checkpoint(trained.checkpoint)
    expected, _ = raw_scores(trained.model, trained.data.test_data)
    assert np.allclose(raw_scores(loaded, trained.data.test_data)[0], expected, atol=1e-6)
    assert loaded.training_report().image_paths == trained.model.training_report().image_paths
    assert np.array_equal(loaded.training_report().scores, trained.model.training_report().scores)
    assert loaded.training_report().contents == contents_of(loaded.training_report().image_paths)


def test_pixel_thresholds_are_of_maps_without_an_images_own_patches(trained: Trained, tmp_path: Path) -> None:
    report = trained.model.training_report()
    assert report.pixels.shape == (5, 256)
    assert (report.pixels.max(axis=1) <= report.scores).all()
    expected = label_free_pixel_threshold(report.pixels, report.scores, 0.005)
    assert trained.model.post_processor.pixel_threshold.item() == pytest.approx(expected, rel=1e-5)
    loaded = trained.kind.load_from_checkpoint(trained.checkpoint).training_report()
    assert np.array_equal(loaded.pixels, report.pixels)
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    del checkpoint["training_report"]["pixels"], checkpoint["training_report"]["contents"]  # of earlier versions
    torch.save(checkpoint, tmp_path / "old.ckpt")
    old = trained.kind.load_from_checkpoint(tmp_path / "old.ckpt").training_report()
    assert (old.pixels, old.contents) == (None, ())
    assert np.array_equal(old.scores, report.scores)


def test_scores_lie_between_0_and_1_and_are_the_maps_maximum(trained: Trained) -> None:
    batch = trained.model.eval().model(torch.randn(3, 3, 64, 64) * 3)
    assert batch.anomaly_map.shape == (3, 1, 64, 64)
    assert batch.anomaly_map.min() >= 0
    assert batch.anomaly_map.max() < 1
    assert torch.equal(batch.pred_score, batch.anomaly_map.amax(dim=(1, 2, 3)))


@pytest.mark.parametrize("kind", MODELS)
def test_a_second_fit_makes_a_new_bank(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    model = fitted(kind, mvtec_root, tmp_path, make_data(mvtec_root, max_normal=4))
    make_engine(tmp_path / "second").fit(model, datamodule=make_data(mvtec_root, max_normal=8))
    again = fitted(kind, mvtec_root, tmp_path / "fresh", make_data(mvtec_root, max_normal=8))
    assert bank_of(model).shape == bank_of(again).shape
    assert len(model.training_report().scores) == 10


@pytest.mark.parametrize("kind", MODELS)
def test_anomalib_knows_it_by_name(kind: type[AnomalibModule]) -> None:
    assert kind.__name__.lower() in {name.replace("_", "") for name in list_models()}
    assert isinstance(get_model(kind.__name__, backbone="test_resnet", pre_trained=False), kind)


@pytest.mark.parametrize("kind", MODELS)
def test_bf16_mixed_scores_as_full_precision_does(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    found = []
    for precision in ("32-true", "bf16-mixed"):
        model, engine = make_model(kind, post_processor=False), make_engine(tmp_path, precision=precision)
        engine.fit(model, datamodule=make_data(mvtec_root))
        batches = engine.predict(model, datamodule=make_data(mvtec_root))
        found.append(torch.cat([batch.pred_score for batch in batches]))
    assert torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_tiles_are_put_together_to_images(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    model, data = make_model(kind, post_processor=False), make_data(mvtec_root)
    engine = make_engine(tmp_path, callbacks=[TilerConfigurationCallback(enable=True, tile_size=32, stride=16)])
    engine.fit(model, datamodule=data)
    [batch, *_] = engine.predict(model, datamodule=data)
    assert batch.anomaly_map.shape[-2:] == (64, 64)
    engine = make_engine(tmp_path, callbacks=[TilerConfigurationCallback(enable=True, tile_size=30, stride=30)])
    with pytest.raises(ValueError, match=r"Set tile_size and stride to multiples of [48]"):
        engine.fit(make_model(kind), datamodule=data)


@pytest.mark.parametrize("kind", MODELS)
def test_a_tiler_that_stretches_images_is_refused(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    tiles = TilerConfigurationCallback(enable=True, tile_size=32, stride=32, mode=ImageUpscaleMode.INTERPOLATION)
    with pytest.raises(ValueError, match=r"mode is interpolation.*Set mode: padding"):
        make_engine(tmp_path, callbacks=[tiles]).fit(make_model(kind), datamodule=make_data(mvtec_root))


@pytest.mark.parametrize("kind", MODELS)
def test_planted_defects_are_found(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    data = make_data(mvtec_root)
    scores, labels = raw_scores(fitted(kind, mvtec_root, tmp_path, data, **PYPI), data.test_data)
    assert roc_auc_score(labels, scores) > 0.9


@pytest.mark.parametrize("kind", MODELS)
def test_the_report_asks_the_other_images_alone(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    everything = {"threshold": 0.0, "coreset_sampling_ratio": 1.0} if kind is SoftPatch else {}
    data = make_data(mvtec_root)
    model = fitted(kind, mvtec_root, tmp_path, data, **PYPI, **everything)
    report = model.training_report()
    reported = dict(zip(report.image_paths, report.scores, strict=True))
    paths = [str(path) for path in data.train_data.samples["image_path"]]
    own, _ = raw_scores(model, data.train_data)
    assert roc_auc_score(data.train_data.samples["is_noise"], [reported[path] for path in paths]) > 0.9
    # an image finds its own patches nearer than others'; where these are as near, fp16 is all that differs
    more = np.array([reported[path] for path in paths]) - own
    assert more.min() > -1e-4
    assert more.mean() > 0.005


@pytest.mark.parametrize("kind", MODELS)
def test_copies_of_a_file_do_not_vouch_for_each_other(kind: type[AnomalibModule], tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for number in range(12):
        save(make_sample(number).image, root / f"{number:02}.png")
    scores = []
    for copies in (1, 4):
        for copy in range(copies):
            save(make_sample(50, "spot").image, root / f"bad_{copy}.png")
        options = {"normal_dir": ".", "noise_ratio": 0, "test_split_mode": "none", "val_split_mode": "none"}
        data = FolderNoisy(name="parts", root=root, num_workers=0, **options)
        model = make_model(kind, **PYPI)
        make_engine(tmp_path).fit(model, datamodule=data)
        report = model.training_report()
        is_bad = np.array(["bad" in path for path in report.image_paths])
        assert report.scores[is_bad].min() > report.scores[~is_bad].max()
        scores.append(report.scores[is_bad].min())
    assert scores[1] > 0.7 * scores[0]


def test_softpatch_sees_a_defect_in_its_training_set_where_a_plain_bank_does_not(
    mvtec_root: Path, tmp_path: Path
) -> None:
    data, aurocs = make_data(mvtec_root), []
    for options in ({"threshold": 0.15}, {"threshold": 0.0, "soft_weights": False}):
        model = fitted(SoftPatch, mvtec_root, tmp_path, data, coreset_sampling_ratio=1.0, **PYPI, **options)
        injected, _ = raw_scores(model, data.injected_data)
        test, labels = raw_scores(model, data.test_data)
        normal = test[labels == 0]
        aurocs.append(roc_auc_score([1] * len(injected) + [0] * len(normal), [*injected, *normal]))
    assert aurocs[0] > 0.9
    assert aurocs[1] < 0.5


def test_softpatch_options_move_what_they_say(mvtec_root: Path, tmp_path: Path) -> None:
    def bank(**options: Any) -> Any:
        return fitted(SoftPatch, mvtec_root, tmp_path, **options).model.bank

    # 12 normal and 3 injected images of 8 x 8 patches
    usual = bank()
    assert len(usual.memory_bank) == int(0.1 * 816)
    assert len(bank(coreset_sampling_ratio=1.0).memory_bank) == 816
    assert len(bank(coreset_sampling_ratio=1.0, threshold=0.5).memory_bank) == 480
    assert bank(soft_weights=False).weights.unique().tolist() == [1.0]
    weights = [bank(noise_score=kind).weights for kind in ("nearest", "gaussian")] + [bank(lof_neighbors=2).weights]
    assert all(other.shape == usual.weights.shape for other in weights)
    assert all(not torch.equal(other, usual.weights) for other in weights)
    assert bank(layers=["layer1", "layer2"]).memory_bank.shape[1] == 32 + 48


def test_inreach_options_move_what_they_say(mvtec_root: Path, tmp_path: Path) -> None:
    def model(**options: Any) -> Any:
        return fitted(InReach, mvtec_root, tmp_path, **options).model

    usual = model()
    size = len(usual.bank.memory_bank)
    assert len(model(seeds=2).bank.memory_bank) != size
    assert 0 < len(model(min_channel_size=5).bank.memory_bank) < size
    assert 0 < len(model(filter_sigma=1.0).bank.memory_bank) < size
    assert len(model(filter_sigma=None).bank.memory_bank) >= size
    positions = model(positional=True)
    assert float(positions.position_range) == 5.0
    assert positions.bank.memory_bank[:, -2:].amax(dim=0).tolist() == [5.0, 5.0]
    assert float(model(positional=False).position_range) == 0.0
    # a weave is the same from the side
    assert float(usual.position_range) == 0.0


def test_inreach_takes_every_block_of_a_resnet_and_projects_a_large_set(
    mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(InReach, backbone="resnet18").model
    # two blocks in each of layer1 to layer3, one of layer4
    assert model.teacher.channels == [64, 64, 128, 128, 256, 256, 512]
    expected = model.teacher.teacher(torch.ones(1, 3, 64, 64))
    assert torch.allclose(model.teacher(torch.ones(1, 3, 64, 64))[5], expected[2], atol=1e-5)
    monkeypatch.setattr("anomalib_cdd.models.inreach.lightning_model.LARGE_SET", 1)
    projected = fitted(InReach, mvtec_root, tmp_path, backbone="resnet18")
    assert projected.model.bank.memory_bank.shape[1] == 192 + 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SoftPatch, {"noise_score": "knn"}, "noise_score is 'knn'; it has to be one of lof, nearest, gaussian"),
        (SoftPatch, {"threshold": 1.0}, "threshold is 1.0"),
        (SoftPatch, {"lof_neighbors": 0}, "lof_neighbors is 0"),
        (SoftPatch, {"coreset_sampling_ratio": 0.0}, "coreset_sampling_ratio is 0.0"),
        (SoftPatch, {"layers": ["layer2"]}, "SoftPatch joins two of the teacher's levels or more"),
        (InReach, {"seeds": 0}, "seeds is 0"),
        (InReach, {"min_channel_size": 0}, "min_channel_size is 0"),
        (InReach, {"filter_sigma": 0.0}, "filter_sigma is 0.0"),
        (InReach, {"layers": ["layer2", "layer3"]}, "none of stride 4"),
    ],
)
def test_bad_options_are_named(kind: type[AnomalibModule], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(kind, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_one_image_is_refused(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    data = make_data(mvtec_root, max_normal=1, noise_ratio=0.0)
    with pytest.raises(ValueError, match=f"{kind.__name__} compares training images with each other and there are 1"):
        make_engine(tmp_path).fit(make_model(kind), datamodule=data)


@pytest.mark.parametrize("kind", [CrossPatch, SoftPatch])
def test_images_smaller_than_the_blur_are_refused(kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path) -> None:
    transform = Compose([Resize((16, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    with pytest.raises(ValueError, match=r"images, or tiles, of 16 x 64 pixels.*Set a larger Resize"):
        fitted(kind, mvtec_root, tmp_path, pre_processor=PreProcessor(transform))


def test_too_few_images_for_a_channel_are_refused(mvtec_root: Path, tmp_path: Path) -> None:
    data = make_data(mvtec_root, max_normal=3, noise_ratio=0.0)
    with pytest.raises(ValueError, match="No channel of 3 training images has more than 3 members"):
        make_engine(tmp_path).fit(make_model(InReach), datamodule=data)


def test_validation_within_the_epoch_is_refused(mvtec_root: Path, tmp_path: Path) -> None:
    data = make_data(mvtec_root, val_split_mode="same_as_test")
    with pytest.raises(ValueError, match=r"val_check_interval is 0\.5"):
        make_engine(tmp_path, val_check_interval=0.5).fit(make_model(SoftPatch), datamodule=data)


def test_inreach_blurs_long_narrow_images_by_their_shorter_side(mvtec_root: Path, tmp_path: Path) -> None:
    transform = Compose([Resize((32, 256), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    model = fitted(InReach, mvtec_root, tmp_path, pre_processor=PreProcessor(transform))
    assert model.eval().model(torch.randn(1, 3, 32, 256)).anomaly_map.shape == (1, 1, 32, 256)


def test_patches_are_in_no_file_that_a_kill_could_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    patches = torch.randn(3, 4, 2, 5)
    file = PatchFile()
    file.add(patches[:2], ["a", "b"])
    file.add(patches[2:], ["c"])
    assert not any(tmp_path.iterdir())
    kept = torch.stack(file.images())
    file.close()
    assert torch.equal(kept, patches.half().permute(0, 2, 3, 1).flatten(1, 2))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_with_what_an_image_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = PatchFile()
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(file, "_file", full)
        with pytest.raises(
            OSError, match=rf"to {tmp_path} \(No space left on device\): 80 bytes an image\. TMPDIR names"
        ):
            file.add(torch.zeros(3, 4, 2, 5), ["a", "b", "c"])


class StopsAtOnce(Callback):
    """Asks for a stop after the first batch, as a time limit does."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = True


class Fails(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            msg = "the power failed"
            raise RuntimeError(msg)


@pytest.mark.parametrize("kind", MODELS)
def test_a_stop_waits_until_the_bank_has_seen_every_image(
    kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path
) -> None:
    model, data = make_model(kind), make_data(mvtec_root, train_batch_size=2)
    engine = make_engine(tmp_path, callbacks=[StopsAtOnce()])
    engine.fit(model, datamodule=data)
    assert sorted(model.training_report().image_paths) == sorted(data.train_data.samples["image_path"])
    assert engine.trainer.current_epoch == 1


@pytest.mark.parametrize("kind", MODELS)
def test_a_bank_does_not_go_on_from_within_its_epoch(
    kind: type[AnomalibModule], mvtec_root: Path, tmp_path: Path
) -> None:
    data = make_data(mvtec_root, train_batch_size=2)
    with pytest.raises(RuntimeError, match="the power failed"):
        make_engine(tmp_path, callbacks=[Fails(), OnExceptionCheckpoint(tmp_path)]).fit(
            make_model(kind), datamodule=data
        )
    checkpoint = tmp_path / "on_exception.ckpt"
    with pytest.raises(ValueError, match=r"on_exception\.ckpt is from within an epoch.*begin anew"):
        make_engine(tmp_path).fit(make_model(kind), datamodule=data, ckpt_path=checkpoint)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_weights_of_another_precision_than_the_images_are_refused(
    mvtec_root: Path, tmp_path: Path, precision: str
) -> None:
    with pytest.raises(ValueError, match=f"precision is {precision}.*Set bf16-mixed or 32-true"):
        make_engine(tmp_path, precision=precision).fit(make_model(SoftPatch), datamodule=make_data(mvtec_root))


def test_inreach_counts_the_channels_that_a_teacher_has(
    mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, widths = make_data(mvtec_root), []
    for spare in (0, 1):
        channels = sum(make_model(InReach).model.teacher.channels)
        assert channels < 1024
        values = 16 * 16 * 16 * channels  # four batches of four, a patch for 4 x 4 of 64 x 64 pixels
        monkeypatch.setattr("anomalib_cdd.models.inreach.lightning_model.LARGE_SET", values - spare)
        widths.append(len(fitted(InReach, mvtec_root, tmp_path, data).model.mixing))
    assert widths == [channels, 192]
