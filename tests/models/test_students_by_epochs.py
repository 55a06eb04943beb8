# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""anomalib's life cycle with the models that train students by ordinary epochs, and what their training achieves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.callbacks.tiler_configuration import TilerConfigurationCallback
from anomalib.data import PredictDataset
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, get_model, list_models
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image
from samples import make_sample, save
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Dmdd, Dtsnet, Mhkd, MVTecNoisy, ReContrast, Urd
from anomalib_cdd.teachers.backbones import PYPI_TEACHER, Teacher
from anomalib_cdd.teachers.students import SeededDropout
from anomalib_cdd.training.report import ReportsTraining

# OpenVINO computes in bf16 where the processor can
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
MODELS = [Mhkd, ReContrast, Urd, Dtsnet, Dmdd]
# GrabCut takes seconds for each of these noisy images
TINY: dict[type, dict[str, Any]] = {
    Mhkd: {"layers": ["layer1"], "learning_rate": 3e-3},
    ReContrast: {"student_width": 8},
    Urd: {"student_width": 8, "foreground": "none"},
    Dtsnet: {"student_width": 8, "foreground": "none"},
    Dmdd: {"layers": ["layer1", "layer2", "layer3"], "foreground": "none"},
}
TRAINED_TEACHER = {"backbone": PYPI_TEACHER, "pre_trained": True}
NARROW = {**TRAINED_TEACHER, "student_width": 16}
PYPI_LEVELS = ["blocks.1.1.conv_pwl", "blocks.2.1.conv_pwl", "blocks.4.2.conv_pwl"]
# how far the map that is put together from tiles is blurred, in pixels
BLURRED = {ReContrast: 16, Urd: 16, Dtsnet: 16}
# what stays as it was loaded
FROZEN = {Urd: ".expert."}


def make_model(kind: type[AnomalibModule], run_seed: int = 0, /, **options: Any) -> AnomalibModule:
    seed_everything(run_seed, verbose=False)
    transform = Compose([Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    defaults = {"backbone": "test_resnet", "pre_trained": False, "visualizer": False, "audit": False}
    return kind(**{**defaults, **TINY[kind], "pre_processor": PreProcessor(transform), **options})


def make_data(root: Path, **options: Any) -> MVTecNoisy:
    defaults = {"category": "bottle", "noise_ratio": 0.0, "val_split_mode": "none", "num_workers": 0}
    return MVTecNoisy(root=root, **{**defaults, "train_batch_size": 2, "eval_batch_size": 4, **options})


def make_engine(folder: Path, max_epochs: int | None = 1, **options: Any) -> Engine:
    defaults = {"logger": False, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "default_root_dir": folder / "results"}
    return Engine(**({} if max_epochs is None else {"max_epochs": max_epochs}), **{**defaults, **options})


@pytest.fixture(scope="module")
def five_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training images and a test image of each kind: what anomalib's own integration test trains on."""
    root = tmp_path_factory.mktemp("five")
    for number in range(5):
        save(make_sample(number).image, root / "bottle" / "train" / "good" / f"{number:03}.png")
    for kind in ("good", "scratch"):
        sample = make_sample(100, kind)
        save(sample.image, root / "bottle" / "test" / kind / "000.png")
        if kind != "good":
            save(sample.mask, root / "bottle" / "ground_truth" / kind / "000_mask.png")
    return root


class Trained:
    """A model after one epoch of five images in batches of two, and what Lightning predicts with it."""

    def __init__(self, kind: type[AnomalibModule], root: Path, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.model, self.data, self.engine = make_model(kind), make_data(root), make_engine(folder)
        self.engine.fit(self.model, datamodule=self.data)
        self.checkpoint = Path(self.engine.best_model_path)
        self.images = PredictDataset(path=root / "bottle" / "test")
        self.scores = predicted(self.engine, self.model, self.images)


def predicted(engine: Engine, model: AnomalibModule, images: PredictDataset) -> dict[str, float]:
    batches = engine.predict(model, dataset=images, return_predictions=True)
    return {path: float(batch.pred_score[i]) for batch in batches for i, path in enumerate(batch.image_path)}


@pytest.fixture(scope="module", params=MODELS, ids=lambda kind: kind.__name__)
def trained(
    request: pytest.FixtureRequest, five_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    return Trained(request.param, five_images, tmp_path_factory.mktemp(request.param.__name__))


@torch.no_grad()
def raw_scores(model: AnomalibModule, data: MVTecNoisy) -> tuple[np.ndarray, np.ndarray]:
    data.setup()
    model.eval()
    items = [data.test_data[i] for i in range(len(data.test_data))]
    images = torch.cat([model.pre_processor.transform(item.image[None]) for item in items])
    return model.model(images).pred_score.numpy(), np.array([int(item.gt_label) for item in items])


@pytest.fixture(scope="module")
def bald_spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine weave, and the same with a spot where there is none: nothing stands out but what is missing."""
    root = tmp_path_factory.mktemp("bald")

    def draw(number: int, bald: bool) -> Image.Image:
        rng = np.random.default_rng([number, bald])
        rows, columns = np.mgrid[:64, :64]
        weave = np.sin(rows / 1.5 + rng.uniform(0, 6)) + np.sin(columns / 1.5 + rng.uniform(0, 6))
        if bald:
            row, column = rng.integers(16, 48, 2)
            weave[(rows - row) ** 2 + (columns - column) ** 2 < 81] = 0
        pixels = 125 + 50 * weave + rng.normal(0, 4, (64, 64))
        return Image.fromarray(np.stack([pixels] * 3, axis=-1).clip(0, 255).astype(np.uint8))

    for number in range(12):
        save(draw(number, bald=False), root / "bottle" / "train" / "good" / f"{number:03}.png")
    for number in range(8):
        save(draw(100 + number, bald=False), root / "bottle" / "test" / "good" / f"{number:03}.png")
        save(draw(200 + number, bald=True), root / "bottle" / "test" / "bald" / f"{number:03}.png")
        mask = Image.fromarray(np.full((64, 64), 255, np.uint8))
        save(mask, root / "bottle" / "ground_truth" / "bald" / f"{number:03}_mask.png")
    return root


@pytest.mark.parametrize(
    ("kind", "epochs", "root", "options", "seed"),
    [
        (Mhkd, 36, "bald_spots", {}, 0),
        (ReContrast, 3, "mvtec_root", NARROW, 0),
        (Urd, 3, "mvtec_root", NARROW, 0),
        (Dtsnet, 3, "mvtec_root", {**NARROW, "foreground": "auto"}, 0),
        (Dmdd, 4, "mvtec_root", {**TRAINED_TEACHER, "layers": PYPI_LEVELS}, 0),
        *(
            pytest.param(
                Dmdd, 4, "mvtec_root", {**TRAINED_TEACHER, "layers": PYPI_LEVELS}, seed, marks=pytest.mark.slow
            )
            for seed in (1, 2)
        ),
    ],
)
def test_training_separates_a_planted_defect_and_an_untrained_model_does_not(
    kind: type[AnomalibModule],
    epochs: int,
    root: str,
    options: dict[str, Any],
    seed: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    data = make_data(request.getfixturevalue(root), train_batch_size=4 if options else 2)
    model = make_model(kind, seed, **options)
    before, labels = raw_scores(model, data)
    make_engine(tmp_path, epochs).fit(model, datamodule=data)
    after, _ = raw_scores(model, data)
    assert roc_auc_score(labels, before) < 0.8
    assert roc_auc_score(labels, after) > 0.9


@pytest.mark.parametrize("kind", MODELS)
def test_anomalib_knows_it_by_name(kind: type[AnomalibModule]) -> None:
    assert kind.__name__.lower() in {name.replace("_", "") for name in list_models()}
    arguments = {"class_path": f"anomalib_cdd.{kind.__name__}", "init_args": {"pre_trained": False}}
    arguments["init_args"] |= {"backbone": "resnet18"}
    model = get_model(arguments)
    assert isinstance(model, kind)
    resize = model.pre_processor.transform.transforms[0]
    assert tuple(resize.size) == (256, 256)


@pytest.mark.parametrize("kind", MODELS)
def test_it_trains_200_epochs_unless_told_otherwise(kind: type[AnomalibModule], tmp_path: Path) -> None:
    for given, expected in ((None, 200), (3, 3)):
        model = make_model(kind)
        options = {} if given is None else {"max_epochs": given}
        model.trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", **options)
        assert model.trainer.max_epochs == expected


@pytest.mark.parametrize("kind", [ReContrast, Urd, Dtsnet])
def test_levels_weights_width_and_rate_are_options(kind: type[AnomalibModule], tmp_path: Path) -> None:
    def frozen_of(model: AnomalibModule) -> Teacher:
        return model.model.expert if kind is Urd else model.model.teacher

    plain = make_model(kind)
    assert [level.name for level in frozen_of(plain).levels] == ["layer1", "layer2", "layer3"]
    state = {name: value * 2 for name, value in frozen_of(plain).network.state_dict().items()}
    torch.save(state, tmp_path / "teacher.pth")
    options = {"layers": ["layer1", "layer2"], "weights": str(tmp_path / "teacher.pth"), "learning_rate": 0.25}
    model = make_model(kind, student_width=4, **options, **({"hard_mining": False} if kind is ReContrast else {}))
    assert [level.name for level in frozen_of(model).levels] == ["layer1", "layer2"]
    assert all(torch.equal(value, state[name]) for name, value in frozen_of(model).network.state_dict().items())
    first = model.configure_optimizers()
    group = (first[0] if isinstance(first, list) else first).param_groups[0]
    assert group["lr"] == 0.25
    assert {id(parameter) for parameter in group["params"]} == {id(p) for p in model.model.student.parameters()}
    wide, narrow = (
        sum(p.numel() for p in make_model(kind, student_width=width).model.student.parameters()) for width in (8, 4)
    )
    assert wide > narrow


@pytest.mark.parametrize("kind", MODELS)
def test_scores_and_maps_lie_between_0_and_1(kind: type[AnomalibModule]) -> None:
    model = make_model(kind).model.eval()
    with torch.no_grad():
        batch = model(torch.randn(3, 3, 64, 96) * 3)
    assert batch.pred_score.shape == (3,)
    assert batch.anomaly_map.shape == (3, 1, 64, 96)
    assert batch.anomaly_map.min() >= 0
    assert batch.anomaly_map.max() <= 1
    assert len(batch.pred_score.unique()) == 3


def test_five_images_are_fitted_tested_validated_and_predicted(trained: Trained) -> None:
    assert len(trained.scores) == 2
    assert all(0 <= score <= 1 for score in trained.scores.values())
    assert "image_AUROC" in trained.engine.test(trained.model, datamodule=trained.data)[0]
    validated = make_data(trained.data.root, val_split_mode="same_as_test")
    trained.engine.validate(trained.model, datamodule=validated)
    assert trained.model.post_processor.image_threshold.isfinite()
    # nobody who has not learned from an image is asked: audit and thresholds take in-sample scores and say so
    assert not isinstance(trained.model, ReportsTraining)


def test_a_checkpoint_gives_the_same_scores_and_needs_no_weights(trained: Trained, tmp_path: Path) -> None:
    loaded = trained.kind.load_from_checkpoint(trained.checkpoint, pre_processor=trained.model.pre_processor)
    assert predicted(make_engine(tmp_path), loaded, trained.images) == trained.scores


def test_training_goes_on_from_a_checkpoint(trained: Trained, tmp_path: Path) -> None:
    model = make_model(trained.kind)
    engine = make_engine(tmp_path, 2)
    engine.fit(model, datamodule=trained.data, ckpt_path=trained.checkpoint)
    assert engine.trainer.current_epoch == 2
    first = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    state = model.state_dict()
    assert all(torch.equal(first[name], state[name]) for name in first if FROZEN.get(trained.kind, ".teacher.") in name)
    moved = [name for name in first if ".student." in name and not torch.equal(first[name], state[name])]
    assert moved


# an OpenVINO export is made of an ONNX export
@pytest.mark.parametrize(
    "form", [ExportType.TORCH, pytest.param(ExportType.ONNX, marks=pytest.mark.slow), ExportType.OPENVINO]
)
def test_exports_score_as_lightning_does(
    trained: Trained, form: ExportType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")  # of anomalib's torch inferencer
    path = trained.engine.export(trained.model, form, export_root=tmp_path)
    if form == ExportType.TORCH:
        inferencer: Any = TorchInferencer(path, device="cpu")
    else:
        inferencer = OpenVINOInferencer(path, device="CPU", config=SINGLE_PRECISION)
    for image, score in trained.scores.items():
        assert float(inferencer.predict(image).pred_score.squeeze()) == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_tiles_are_images_of_their_own(kind: type[AnomalibModule], five_images: Path, tmp_path: Path) -> None:
    tiling = TilerConfigurationCallback(enable=True, tile_size=32, stride=32)
    model = make_model(kind)
    make_engine(tmp_path, callbacks=[tiling]).fit(model, datamodule=make_data(five_images))
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :32, :32] = 0
    model.model.eval()
    with torch.no_grad():
        difference = (model.model(images).anomaly_map - model.model(changed).anomaly_map).abs()
    assert difference[..., :32, :32].max() > 0
    far = 32 + BLURRED.get(kind, 0)
    assert difference[..., far:, :].max() == difference[..., :, far:].max() == 0


@pytest.mark.parametrize("kind", MODELS)
def test_bf16_mixed_trains_and_scores_in_full_precision(
    kind: type[AnomalibModule], five_images: Path, tmp_path: Path
) -> None:
    model, data = make_model(kind), make_data(five_images)
    engine = make_engine(tmp_path, precision="bf16-mixed")
    engine.fit(model, datamodule=data)
    scores = [
        batch.pred_score for batch in engine.predict(model, dataset=PredictDataset(path=data.root / "bottle" / "test"))
    ]
    assert all(score.dtype == torch.float32 and score.isfinite().all() for score in scores)


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_that_is_no_checkpoint_is_named(kind: type[AnomalibModule], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        kind.load_from_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "noise.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(ValueError, match=r"noise\.ckpt"):
        kind.load_from_checkpoint(tmp_path / "noise.ckpt")


@pytest.mark.parametrize("kind", [Mhkd, ReContrast, Dtsnet])
def test_a_loss_that_is_not_finite_ends_the_training(
    kind: type[AnomalibModule], five_images: Path, tmp_path: Path
) -> None:
    model = make_model(kind, post_processor=False)
    with torch.no_grad():
        next(model.model.student.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"Training diverged in epoch 0 .*: loss is nan.*lower learning_rate"):
        make_engine(tmp_path).fit(model, datamodule=make_data(five_images))


class Seen(Callback):
    """The learning rates, and whether batch statistics were taken, in each step of a fit."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.took_statistics: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        norms = [module for module in pl_module.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        self.took_statistics.append(any(module.training for module in norms))


@pytest.mark.parametrize("kind", MODELS)
def test_images_of_several_sizes_train_one_at_a_time(kind: type[AnomalibModule], tmp_path: Path) -> None:
    for number, width in enumerate((64, 80, 112)):
        image = make_sample(number).image.resize((width, 64))
        save(image, tmp_path / "bottle" / "train" / "good" / f"{number}.png")
    save(make_sample(9).image, tmp_path / "bottle" / "test" / "good" / "0.png")
    transform = Compose([Resize(64, antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    model = make_model(kind, pre_processor=PreProcessor(transform))
    make_engine(tmp_path).fit(model, datamodule=make_data(tmp_path, train_batch_size=1, eval_batch_size=1))
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("kind", [ReContrast, Urd, Dtsnet])
def test_dropout_draws_by_the_runs_seed_and_after_a_resume_as_without_one(
    kind: type[AnomalibModule], five_images: Path, tmp_path: Path
) -> None:
    options = {"backbone": "vit_tiny_patch16_224"} | ({"multiscale_fusion": False} if kind is Dtsnet else {})

    def draws(folder: Path, run_seed: int, epochs: int, ckpt_path: str | None = None) -> tuple[list[Any], str]:
        model, drawn = make_model(kind, run_seed, **options), []
        [dropout] = [part for part in model.modules() if isinstance(part, SeededDropout)]
        dropout.register_forward_hook(lambda part, *_: drawn.append((part.seed, part.drawn)) if part.training else None)
        engine = make_engine(folder, epochs)
        engine.fit(model, datamodule=make_data(five_images), ckpt_path=ckpt_path)
        return drawn, engine.best_model_path

    whole, _ = draws(tmp_path / "whole", 0, 2)
    _, checkpoint = draws(tmp_path / "half", 0, 1)
    resumed, _ = draws(tmp_path / "rest", 0, 2, checkpoint)
    other, _ = draws(tmp_path / "other", 1, 1)
    assert len(set(whole)) == len(whole)
    assert resumed == whole[len(whole) // 2 :]
    assert not set(other) & set(whole)


@pytest.mark.parametrize("kind", [ReContrast, Urd, Dtsnet, Dmdd])
def test_a_resumed_fit_trains_at_its_own_rate_whatever_an_export_left(
    kind: type[AnomalibModule], five_images: Path, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path)
    engine.fit(make_model(kind), datamodule=make_data(five_images))
    resumed, seen = make_model(kind, learning_rate=1e-5).eval(), Seen()
    again = make_engine(tmp_path / "again", 2, callbacks=[seen])
    again.fit(resumed, datamodule=make_data(five_images), ckpt_path=engine.best_model_path)
    assert seen.rates == [1e-5] * 3
    assert all(seen.took_statistics)


def test_mhkds_rate_falls_by_the_end_of_the_fit_that_goes_on(five_images: Path, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    model = make_model(Mhkd)
    engine.fit(model, datamodule=make_data(five_images))
    # a fit that has nothing left to do leaves the teacher's scale as it was
    mean = model.model.mean.clone()
    engine.fit(model, datamodule=make_data(five_images, max_normal=3))
    assert torch.equal(model.model.mean, mean)
    seen = Seen()
    again = make_engine(tmp_path / "again", 10, callbacks=[seen])
    resumed = make_model(Mhkd, learning_rate=2e-3)
    again.fit(resumed, datamodule=make_data(five_images), ckpt_path=engine.best_model_path)
    assert seen.rates == pytest.approx([2e-3] * 25 + [2e-4] * 2)


def test_mhkd_leaves_a_schedule_from_elsewhere_alone(
    five_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of the command line's ``--optimizer`` and ``--lr_scheduler``, which count epochs."""
    model, seen = make_model(Mhkd), Seen()

    def of_the_command_line() -> Any:
        optimizer = torch.optim.Adam(model.model.student.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2], gamma=0.5)]

    monkeypatch.setattr(model, "configure_optimizers", of_the_command_line)
    make_engine(tmp_path, 3, callbacks=[seen]).fit(model, datamodule=make_data(five_images))
    assert seen.rates == pytest.approx([0.01] * 6 + [0.005] * 3)


@pytest.mark.parametrize("kind", [Mhkd, Urd])
def test_weights_of_another_precision_than_the_images_are_refused(
    kind: type[AnomalibModule], five_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"precision is bf16-true.*Set bf16-mixed or 32-true"):
        make_engine(tmp_path, precision="bf16-true").fit(make_model(kind), datamodule=make_data(five_images))
