# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""anomalib's life cycle: fit, resume, load, export, predict; and what training looks like from the outside."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.callbacks.tiler_configuration import TilerConfigurationCallback
from anomalib.data import PredictDataset
from anomalib.deploy import CompressionType, ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import get_model, list_models
from anomalib.models.components import GaussianBlur2d
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, Resize

from anomalib_cdd import Cdd, MVTecNoisy
from anomalib_cdd.models.cdd.features import GIGABYTE, FeatureBudget, FeatureCache, TeacherFeatures
from anomalib_cdd.teachers.backbones import PYPI_TEACHER

# OpenVINO computes in bf16 where the processor can
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}

Model = Callable[..., Cdd]
Data = Callable[..., MVTecNoisy]
Engines = Callable[..., Engine]


def scores(model: Cdd, data: MVTecNoisy) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores and labels of the test set."""
    data.setup()
    model.eval()
    items = [data.test_data[i] for i in range(len(data.test_data))]
    with torch.no_grad():
        images = torch.cat([model.pre_processor.transform(item.image[None]) for item in items])
        return model.model(images).pred_score.numpy(), np.array([int(item.gt_label) for item in items])


def state(model: Cdd) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith("model.")}


def test_training_separates_a_planted_defect_and_an_untrained_model_does_not(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
) -> None:
    data = make_data()
    model = make_model(backbone=PYPI_TEACHER, pre_trained=True, student_width=16)
    before, labels = scores(model, data)
    make_engine(max_epochs=30).fit(model, datamodule=data)
    after, _ = scores(model, data)
    assert roc_auc_score(labels, before) < 0.8
    assert roc_auc_score(labels, after) > 0.9


def test_scores_and_maps_lie_between_0_and_1(make_model: Model) -> None:
    for backbone in ("test_resnet", "test_convnext"):
        model = make_model(backbone=backbone).eval()
        batch = model.model(torch.randn(3, 3, 64, 64) * 3)
        assert batch.pred_score.shape == (3,)
        assert batch.anomaly_map.shape == (3, 1, 64, 64)
        assert batch.anomaly_map.min() >= 0
        assert batch.anomaly_map.max() <= 1
        assert torch.allclose(batch.pred_score, batch.anomaly_map.amax(dim=(1, 2, 3)))


def test_the_map_is_the_papers(make_model: Model) -> None:
    """Eq. 11 by hand, smoothed with anomalib's own two-dimensional kernel."""
    model = make_model().model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        teacher = model.teacher(images)
        levels = zip(teacher, model.student(teacher), strict=True)
        maps = [
            torch.nn.functional.interpolate(
                (1 - torch.cosine_similarity(t, s, dim=1))[:, None],
                size=(64, 64),
                mode="bilinear",
                align_corners=True,
            )
            for t, s in levels
        ]
        expected = GaussianBlur2d(sigma=4.0, kernel_size=33)(sum(maps) / 3)
        assert torch.allclose(model(images).anomaly_map, expected, atol=1e-5)


def test_scores_do_not_tie_in_low_precision(make_model: Model) -> None:
    model = make_model().model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        batch = model(torch.randn(50, 3, 64, 64))
    assert batch.pred_score.dtype == torch.float32
    assert len(batch.pred_score.unique()) == 50


def test_checkpoint_loads_with_weights_only_and_fetches_nothing(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data, engine = make_model(domains=[2]), make_data(), make_engine(1)
    engine.fit(model, datamodule=data)
    expected = scores(model, data)[0]

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were fetched")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    loaded = Cdd.load_from_checkpoint(engine.trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert np.allclose(scores(loaded, data)[0], expected, atol=1e-6)
    assert loaded.hparams.domains == (2,)


def test_of_domain_students_a_checkpoint_has_what_the_next_epoch_goes_on_with(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
) -> None:
    sizes = {}
    for choice in ("forked", "persistent"):
        engine = make_engine(1)
        engine.fit(make_model(domain_students=choice), datamodule=make_data())
        path = engine.trainer.checkpoint_callback.best_model_path
        checkpoint = torch.load(path, weights_only=True)
        assert {name.partition(".")[0] for name in checkpoint["state_dict"]} <= {"model", "post_processor"}
        sizes[choice] = [len(moments["state"]) for moments in checkpoint["optimizer_states"]]
    assert sizes["forked"][0] > 0
    assert sizes["forked"][1:] == [0, 0]
    assert sizes["persistent"][1] == sizes["persistent"][0]


@pytest.fixture(scope="module")
def trained(
    make_model: Model,
    make_data: Data,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Cdd, Engine, MVTecNoisy]:
    model, data = make_model(), make_data(val_split_mode="same_as_test")
    root = tmp_path_factory.mktemp("trained")
    engine = Engine(max_epochs=3, logger=False, accelerator="cpu", default_root_dir=root, enable_progress_bar=False)
    engine.fit(model, datamodule=data)
    return model, engine, data


def lightning_predictions(trained: tuple[Cdd, Engine, MVTecNoisy]) -> dict[str, float]:
    model, engine, data = trained
    batches = engine.predict(model, dataset=PredictDataset(data.root / "bottle" / "test"))
    return {
        path: float(score) for batch in batches for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }


def test_torch_export_scores_as_lightning_does(
    trained: tuple[Cdd, Engine, MVTecNoisy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, engine, _ = trained
    expected = lightning_predictions(trained)
    path = engine.export(model, ExportType.TORCH, export_root=tmp_path)
    assert path.stat().st_size < 4 * sum(value.nbytes for value in model.state_dict().values())
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    inferencer = TorchInferencer(path, device="cpu")
    for image, score in expected.items():
        assert inferencer.predict(image).pred_score.item() == pytest.approx(score, abs=1e-3)
    assert len({round(score, 4) for score in expected.values()}) > 5


def test_moments_of_another_memory_format_resume_as_they_are(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> None:
    engine = make_engine(max_epochs=1)
    engine.fit(make_model(), datamodule=make_data())
    engine.trainer.save_checkpoint(tmp_path / "after.ckpt")
    checkpoint = torch.load(tmp_path / "after.ckpt", weights_only=True)
    moments = checkpoint["optimizer_states"][0]["state"].values()
    assert any(state["exp_avg"].is_contiguous(memory_format=torch.channels_last) for state in moments)
    for state in moments:
        state.update({name: state[name].contiguous() for name in ("exp_avg", "exp_avg_sq")})
    torch.save(checkpoint, tmp_path / "contiguous.ckpt")
    ends = []
    for name in ("after", "contiguous"):
        model = make_model()
        make_engine(max_epochs=2).fit(model, datamodule=make_data(), ckpt_path=tmp_path / f"{name}.ckpt")
        ends.append(model.model.student.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_an_8_bit_export_takes_its_ranges_from_training_images(
    trained: tuple[Cdd, Engine, MVTecNoisy], tmp_path: Path
) -> None:
    model, engine, data = trained
    expected = lightning_predictions(trained)
    kind, bits = ExportType.OPENVINO, CompressionType.INT8_PTQ
    path = engine.export(model, kind, export_root=tmp_path, compression_type=bits, datamodule=data, input_size=(64, 64))
    assert "FakeQuantize" in path.read_text()
    assert 'element_type="i8"' in path.read_text()
    inferencer = OpenVINOInferencer(path, device="CPU")
    scores = [float(inferencer.predict(image).pred_score.squeeze()) for image in expected]
    # eight channels in 8 bits; of a map that is itself in 8 bits nothing is left
    assert np.corrcoef(scores, list(expected.values()))[0, 1] > 0.7
    with pytest.raises(ValueError, match="pass a datamodule"):
        engine.export(model, kind, export_root=tmp_path, compression_type=bits)


@pytest.mark.parametrize("kind", [ExportType.ONNX, ExportType.OPENVINO])
def test_onnx_and_openvino_exports_score_as_lightning_does(
    trained: tuple[Cdd, Engine, MVTecNoisy],
    tmp_path: Path,
    kind: ExportType,
) -> None:
    model, engine, _ = trained
    expected = lightning_predictions(trained)
    path = engine.export(model, kind, export_root=tmp_path)
    inferencer = OpenVINOInferencer(path, device="CPU", config=SINGLE_PRECISION)
    for image, score in expected.items():
        assert float(inferencer.predict(image).pred_score.squeeze()) == pytest.approx(score, abs=1e-3)


def test_export_has_dynamic_sides(trained: tuple[Cdd, Engine, MVTecNoisy], tmp_path: Path) -> None:
    path = trained[1].export(trained[0], ExportType.ONNX, export_root=tmp_path)
    inferencer = OpenVINOInferencer(path, device="CPU", config=SINGLE_PRECISION)
    for height, width in ((64, 64), (100, 140)):
        with Image.open(trained[2].root / "bottle" / "test" / "scratch" / "000.png") as photo:
            image = np.array(photo.resize((width, height)), dtype=np.float32) / 255
        with torch.no_grad():
            expected = trained[0].eval()(torch.from_numpy(image).permute(2, 0, 1)[None]).pred_score.item()
        assert 0 < expected < 1
        # the exported graph resizes without antialiasing, as anomalib's own exports do
        assert float(inferencer.predict(image).pred_score.squeeze()) == pytest.approx(expected, abs=1e-3)


def test_five_images_two_a_batch_one_epoch(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    tmp_path: Path,
) -> None:
    """What anomalib's own integration test does with every model it lists."""
    data = make_data(max_normal=4, train_batch_size=2, val_split_mode="same_as_test")
    model, engine = make_model(), make_engine(1)
    engine.fit(model, datamodule=data)
    assert len(data.train_data) == 5
    engine.test(model, datamodule=data)
    checkpoint = engine.trainer.checkpoint_callback.best_model_path
    make_engine(1).train(make_model(), datamodule=data, ckpt_path=checkpoint)
    engine.validate(model, datamodule=data)
    assert engine.predict(model, datamodule=data, ckpt_path=checkpoint)
    exported = make_model()
    for kind in (ExportType.TORCH, ExportType.ONNX, ExportType.OPENVINO):
        assert engine.export(exported, kind, export_root=tmp_path, ckpt_path=checkpoint).exists()


def test_anomalib_knows_the_model_by_name() -> None:
    assert "cdd" in list_models()
    for name in ("cdd", "Cdd"):
        assert isinstance(get_model(name, backbone="test_resnet", pre_trained=False), Cdd)
    for path in ("Cdd", "anomalib_cdd.Cdd", "anomalib.models.Cdd"):
        model = get_model({"class_path": path, "init_args": {"backbone": "test_resnet", "pre_trained": False}})
        assert isinstance(model, Cdd)


def test_omegaconf_lists_become_plain_data(make_data: Data, make_engine: Engines) -> None:
    options = {"backbone": "test_resnet", "pre_trained": False, "layers": ["layer2", "layer3"], "domains": [2]}
    model = get_model({"class_path": "Cdd", "init_args": options})
    assert model.hparams.layers == ("layer2", "layer3")
    engine = make_engine(1)
    engine.fit(model, datamodule=make_data())
    torch.load(engine.trainer.checkpoint_callback.best_model_path, weights_only=True)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_lower_precision_trains_to_about_the_same(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    precision: str,
) -> None:
    losses = {}
    for choice in ("32-true", precision):
        engine = make_engine(2, precision=choice)
        engine.fit(make_model(), datamodule=make_data())
        losses[choice] = engine.trainer.callback_metrics["train_loss_global"].item()
    assert losses[precision] == pytest.approx(losses["32-true"], rel=0.2)


def test_progress_moves_within_the_epoch_and_everything_is_logged(
    make_image_model: Model,
    make_data: Data,
    make_engine: Engines,
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: object, *args: object) -> None:
            seen.append(trainer.global_step)  # type: ignore[attr-defined]

    engine = make_engine(4, callbacks=[Watch()], logger=CSVLogger(tmp_path, name="log"))
    engine.fit(make_image_model(domains=(2, 3), regularization="s-curve"), datamodule=make_data())
    steps = np.diff([0, *seen])
    assert len(steps) == 16
    assert (steps > 0).all()
    with (tmp_path / "log" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_epoch = {int(row["epoch"]): row for row in rows}
    assert [float(by_epoch[e]["epoch_K"]) for e in range(4)] == [2, 2, 3, 3]
    assert [float(by_epoch[e]["epoch_confident"]) for e in range(4)] == [0, 3, 7, 7]
    assert float(by_epoch[2]["epoch_regularization"]) == 0.5
    assert float(by_epoch[1]["epoch_r"]) == pytest.approx(3 / 15)
    for epoch, row in by_epoch.items():
        # domain students learn in the first and the third
        assert float(row["train_loss_domain"]) > 0 if epoch in {0, 2} else row["train_loss_domain"] == ""
        assert float(row["train_loss_global"]) > 0
    assert float(by_epoch[3]["train_loss_confident"]) > 0


def test_the_papers_epochs_are_the_default_and_an_explicit_number_wins(
    make_model: Model,
    make_data: Data,
    tmp_path: Path,
) -> None:
    class Stop(Callback):
        epochs = 0

        def on_fit_start(self, trainer: object, *args: object) -> None:
            Stop.epochs = trainer.max_epochs  # type: ignore[attr-defined]
            raise InterruptedError

    for given, expected in ((None, 200), (1000, 1000), (3, 3)):
        options = {} if given is None else {"max_epochs": given}
        engine = Engine(logger=False, accelerator="cpu", callbacks=[Stop()], default_root_dir=tmp_path, **options)
        with pytest.raises(InterruptedError):
            engine.fit(make_model(), datamodule=make_data())
        assert Stop.epochs == expected


def test_images_are_decoded_once(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_data()
    data.setup()
    reads: list[int] = []
    dataset = type(data.train_data)
    get = dataset.__getitem__
    monkeypatch.setattr(dataset, "__getitem__", lambda self, index: reads.append(index) or get(self, index))
    make_engine(3).fit(make_model(post_processor=False), datamodule=data)
    assert len(reads) == 15 + 1  # one more to see the shapes
    reads.clear()
    make_engine(3).fit(make_model(), datamodule=data)
    assert len(reads) == 15 + 1 + 15  # and once for the thresholds
    reads.clear()
    make_engine(2).fit(make_model(cache=False), datamodule=data)
    # two passes of an epoch that trains domain students, one of the next, the report's scale and the thresholds
    assert len(reads) == 1 + (2 + 1 + 1 + 1) * 15


def test_the_datamodule_is_left_as_it_was(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    data = make_data()
    make_engine(1).fit(make_model(), datamodule=data)
    assert next(iter(data.train_dataloader())).image.shape[-2:] == (64, 64)


def test_random_augmentations_turn_the_cache_off(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    filled: list[bool] = []
    fill = TeacherFeatures.fill
    monkeypatch.setattr(TeacherFeatures, "fill", lambda self, budget: filled.append(True) or fill(self, budget))
    random = Compose([RandomHorizontalFlip(), Resize((64, 64))])
    with caplog.at_level("WARNING"):
        make_engine(2).fit(make_model(), datamodule=make_data(train_augmentations=random))
    assert not filled
    assert "training augmentations may be random" in caplog.text
    make_engine(1).fit(make_model(), datamodule=make_data(train_augmentations=Resize((64, 64))))
    assert filled


def test_cache_in_memory_on_disk_and_off_train_the_same(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    tmp_path: Path,
) -> None:
    states = {}
    for name, options in {
        "memory": {},
        "disk": {"cache_memory_gb": 0, "cache_dir": str(tmp_path / "cache")},
        "off": {"cache": False},
    }.items():
        model = make_model(**options, learning_rate=1e-4)
        make_engine(2).fit(model, datamodule=make_data())
        states[name] = state(model)
    assert all(torch.equal(value, states["disk"][name]) for name, value in states["memory"].items())
    for name, value in states["memory"].items():
        # fp16 and bf16 caches against none
        assert torch.allclose(value.float(), states["off"][name].float(), atol=5e-3), name
    assert not list((tmp_path / "cache").iterdir())


def test_tiles_are_images_of_their_own(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    sizes: list[int] = []

    class Watch(Callback):
        def on_train_start(self, trainer: object, pl_module: Cdd) -> None:
            sizes.append(len(pl_module.training_set))

    for cache in (True, False):
        model = make_model(cache=cache, domains=(2,))
        tiler = TilerConfigurationCallback(enable=True, tile_size=32, stride=32)
        engine = make_engine(2, callbacks=[tiler, Watch()])
        data = make_data()
        engine.fit(model, datamodule=data)
        [batch, *_] = engine.predict(model, datamodule=data)
        assert batch.anomaly_map.shape[-2:] == (64, 64)
    assert sizes == [15 * 4] * 2


def test_visualiser_writes_its_images(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    tmp_path: Path,
) -> None:
    model, data, engine = make_model(visualizer=True), make_data(), make_engine(1)
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data)
    assert len(list((tmp_path / "results").rglob("images/**/*.png"))) == len(data.test_data)


def test_warm_up_is_reverse_distillation(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    switches = ("domain_construction", "confidence_guidance", "pseudo_normal", "confident_distillation")
    off = {**dict.fromkeys(switches, False), "regularization": 0.0, "feature_noise": 0.0}
    states = []
    for options in ({"warmup_epochs": 2}, off):
        model = make_model(**options)
        make_engine(2).fit(model, datamodule=make_data())
        states.append(state(model))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_memory_comes_back_after_a_fit(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    model = make_model()
    make_engine(1).fit(model, datamodule=make_data())
    assert model._training_set is None
    assert model._others.students == []
    with pytest.raises(RuntimeError, match="outside a fit"):
        _ = model.training_set


def test_keyboard_interrupt_within_an_epoch_keeps_the_last_checkpoint(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    update = Cdd.optimize

    def interrupt(model: Cdd, *args: object) -> None:
        if model.current_epoch == 1:
            # a kill runs no clean-up: what is on disk has no name from the start
            assert not list(cache.iterdir())
            raise KeyboardInterrupt
        update(model, *args)

    cache = tmp_path / "cache"
    monkeypatch.setattr(Cdd, "optimize", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_engine(3).fit(make_model(cache_memory_gb=0, cache_dir=str(cache)), datamodule=make_data())
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    monkeypatch.setattr(Cdd, "optimize", update)
    engine = make_engine(3)
    engine.fit(make_model(), datamodule=make_data(), ckpt_path=checkpoint)
    assert engine.trainer.current_epoch == 3


def test_cache_reads_what_was_written(tmp_path: Path) -> None:
    for rows in (0, 2, 4, 5):
        shapes = [(2, 3, 4), (7, 1, 1)]
        row = FeatureCache.size_of(1, shapes, torch.bfloat16)
        budget = FeatureBudget(rows * row / GIGABYTE, tmp_path)
        cache = budget.cache(5, shapes, torch.bfloat16)
        assert budget.on_disk == (5 - rows) * row
        levels = [torch.randn(2, 2, 3, 4), torch.randn(2, 7, 1, 1)]
        cache.write(torch.tensor([4, 1]), levels)
        first, second = cache.read(torch.tensor([1, 4]))
        assert torch.equal(first, levels[0].flip(0).bfloat16().float())
        assert torch.equal(second, levels[1].flip(0).bfloat16().float())
        with pytest.raises(ValueError, match=r"one size are of \(2, 3, 4\), those of others of \(2, 4, 3\)"):
            cache.write(torch.tensor([0, 1]), [levels[0].mT, levels[1]])
        with pytest.raises(ValueError, match="not finite in bfloat16"):
            cache.write(torch.tensor([0, 1]), [levels[0] * torch.inf, levels[1]])


def test_importing_brings_nothing_that_anomalib_does_not() -> None:
    code = """
import sys
import anomalib.models, anomalib.data, anomalib.engine
def packages():
    return {name.partition(".")[0] for name in sys.modules}
before = packages()
import anomalib_cdd
print(*sorted(packages() - before))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["anomalib_cdd"]


@pytest.mark.parametrize(
    ("backbone", "mean"), [("wide_resnet50_2.tv_in1k", [0.485, 0.456, 0.406]), (PYPI_TEACHER, [0.5] * 3)]
)
def test_default_pre_processor_is_the_papers_with_the_teachers_normalisation(backbone: str, mean: list[float]) -> None:
    steps = Cdd.configure_pre_processor(backbone=backbone).transform.transforms
    image = Compose(steps)(torch.full((1, 3, 300, 500), 0.75))
    assert image.shape == (1, 3, 224, 224)
    assert list(steps[0].size) == [256, 256]
    assert list(steps[-1].mean) == mean
    model = Cdd(backbone=PYPI_TEACHER, visualizer=False)
    assert torch.allclose(model.pre_processor.transform(torch.full((1, 3, 300, 500), 0.75)), torch.tensor(0.5))


def test_the_seed_alone_decides_on_the_model(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    ends = []
    for drawn, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(drawn)
        model = Cdd(backbone="test_resnet", pre_trained=False, student_width=8, audit=False, seed=seed)
        model.pre_processor = make_model().pre_processor
        torch.manual_seed(drawn)
        make_engine(1).fit(model, datamodule=make_data())
        ends.append(state(model))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not all(torch.equal(value, ends[2][name]) for name, value in ends[0].items())


def test_a_fit_after_an_evaluation_trains_as_if_there_had_been_none(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    """BatchNorm's statistics would be frozen: Lightning keeps the mode in which it finds a model."""
    ends = []
    for evaluated in (False, True):
        model = make_model()
        if evaluated:
            model.eval()
        make_engine(2).fit(model, datamodule=make_data())
        ends.append(state(model))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize(("precision", "expected"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_trainers_precision_rules_alone_and_the_teacher_stays_in_fp32(
    make_model: Model, make_data: Data, make_engine: Engines, precision: str, expected: torch.dtype
) -> None:
    model, dtypes = make_model(), {"student": set(), "teacher": set()}
    model.model.student.register_forward_hook(lambda _, __, levels: dtypes["student"].add(levels[0].dtype))
    model.model.teacher.register_forward_hook(lambda _, __, levels: dtypes["teacher"].add(levels[0].dtype))
    engine = make_engine(1, precision=precision)
    engine.fit(model, datamodule=make_data())
    engine.test(model, datamodule=make_data())
    assert dtypes["teacher"] == {torch.float32}
    assert expected in dtypes["student"]
    dtypes["student"].clear()
    with torch.no_grad():
        model.eval()(torch.rand(1, 3, 64, 64))
    assert dtypes["student"] == {torch.float32}


def test_the_papers_setting_is_one_call_away() -> None:
    model = Cdd.paper(backbone="test_resnet", pre_trained=False)
    assert model.hparams.domains == (2, 3, 3, 2)
    assert model.hparams.domain_students == "forked"
    assert model.hparams.regularization == "s-curve"
    assert model.hparams.confident_once is False
    assert (model.hparams.max_confident, model.hparams.confident_patches) == (0.5, 0.0)
    assert Cdd.paper(backbone="test_resnet", pre_trained=False, confident_once=True).hparams.confident_once is True
