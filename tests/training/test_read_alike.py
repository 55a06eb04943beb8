# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A file is read alike by training, audit, test, prediction and export; a twelve-bit camera is the case in point.

The images lie on their side (EXIF orientation 6) and are as large as the model takes them, so that nothing is resized.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.transforms.v2 import Compose, Grayscale, Normalize, Resize

from anomalib_cdd import Cdd, FolderNoisy, PredictImages, read_image
from anomalib_cdd.__main__ import main
from anomalib_cdd.training.scoring import iterate_predictions

SIZE = (64, 48)
ORIENTATION = 0x0112


def photograph(number: int, bits: int) -> Image.Image:
    """A woven texture of ``bits`` bits, 48 wide and 64 high once it is upright; 0 is bright to the left."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    texture = 0.4 + 0.1 * np.sin(rows / 3 + number) + 0.1 * np.sin(columns / 4) - 0.2 * (columns > 24)
    upright = (texture + rng.normal(0, 0.01, SIZE)).clip(0, 0.85) * (2**bits - 1)
    stored = np.rot90(upright)  # 90 degrees to the left: orientation 6 turns it back
    return Image.fromarray(np.ascontiguousarray(stored).astype(np.uint8 if bits == 8 else np.uint16))


def write(folder: Path, bits: int = 12) -> Path:
    folder.mkdir(parents=True)
    for number in range(8):
        image = photograph(number, bits)
        exif = image.getexif()
        exif[ORIENTATION] = 6
        image.save(folder / f"{number}.png", exif=exif)
    return folder


def make_model(**options: Any) -> Cdd:
    seed_everything(0, verbose=False)
    transform = Compose([Resize(SIZE, antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    defaults = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "audit": False}
    return Cdd(**{**defaults, "pre_processor": PreProcessor(transform), "visualizer": False, **options})


def make_data(folder: Path, kind: type[Folder] = FolderNoisy, **options: Any) -> Folder:
    defaults = {"name": "camera", "root": folder, "normal_dir": ".", "train_batch_size": 4, "num_workers": 0}
    noise = {"noise_ratio": 0} if kind is FolderNoisy else {}
    return kind(**{**defaults, **noise, "test_split_mode": "none", "val_split_mode": "none", **options})


def make_engine(folder: Path) -> Engine:
    options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return Engine(max_epochs=1, default_root_dir=folder / "results", **options)


class Trained(NamedTuple):
    model: Cdd
    engine: Engine
    folder: Path
    checkpoint: str
    scores: dict[str, float]
    """As the data module of the training gives them to the model."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("camera")
    folder = write(home / "images")
    model, engine, data = make_model(), make_engine(home), make_data(folder)
    engine.fit(model, datamodule=data)
    loader = DataLoader(data.train_data, batch_size=4, collate_fn=data.train_data.collate_fn)
    scores = by_name(engine.predict(model, dataloaders=loader))
    return Trained(model, engine, folder, engine.trainer.checkpoint_callback.best_model_path, scores)


def by_name(batches: Any) -> dict[str, float]:
    return {
        Path(path).name: float(score)
        for batch in batches
        for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }


def test_training_images_fill_the_range_and_stand_upright(trained: Trained) -> None:
    assert trained.model.white_level == 4095
    image = read_image(trained.folder / "0.png", white=trained.model.white_level)
    assert image.shape == (3, *SIZE)
    assert image.max() > 0.5
    assert image[..., :24].mean() > image[..., 24:].mean() + 0.1
    assert len(set(trained.scores.values())) == 8
    assert min(trained.scores.values()) > 0


@pytest.mark.parametrize("kind", ["dataset", "data_path", "images", "file", "loader with workers"])
def test_every_way_to_predict_reads_as_training_did(trained: Trained, kind: str) -> None:
    model, engine, folder = trained.model, trained.engine, trained.folder
    ways: dict[str, Any] = {
        "dataset": lambda: {"dataset": PredictDataset(folder)},
        "data_path": lambda: {"data_path": folder},
        "images": lambda: {"dataset": PredictImages(folder)},
        "file": lambda: {"data_path": folder / "3.png"},
        "loader with workers": lambda: {
            "dataloaders": DataLoader(
                PredictDataset(folder), num_workers=1, collate_fn=PredictDataset(folder).collate_fn
            )
        },
    }
    scores = by_name(engine.predict(model, **ways[kind]()))
    expected = {name: trained.scores[name] for name in scores}
    assert scores == pytest.approx(expected, abs=1e-3)
    assert len(scores) == (1 if kind == "file" else 8)


def test_a_checkpoint_knows_what_was_white(trained: Trained, tmp_path: Path) -> None:
    assert torch.load(trained.checkpoint, weights_only=True)["white_level"] == 4095
    loaded = Cdd.load_from_checkpoint(trained.checkpoint, pre_processor=trained.model.pre_processor, visualizer=False)
    assert loaded.white_level == 4095
    assert by_name(make_engine(tmp_path).predict(loaded, data_path=trained.folder)) == pytest.approx(
        trained.scores, abs=1e-3
    )
    # the trainer loads it after it has been given the images
    fresh = make_engine(tmp_path).predict(make_model(), data_path=trained.folder, ckpt_path=trained.checkpoint)
    assert by_name(fresh) == pytest.approx(trained.scores, abs=1e-3)


def test_other_images_are_tested_and_audited_by_the_model_s_white(trained: Trained, tmp_path: Path) -> None:
    """A folder of dark images of the camera: alone they would pass for ten bits."""
    for name in ("dark", "test"):
        (tmp_path / name).mkdir()
    for number in range(4):
        dark = np.asarray(photograph(number, 12)) // 5
        assert dark.max() < 1024
        for name in ("dark", "test"):
            Image.fromarray(dark).save(tmp_path / name / f"{number}.png")
    model = trained.model.eval()
    images = [read_image(path, white=4095) for path in sorted((tmp_path / "dark").glob("*.png"))]
    with torch.inference_mode():
        expected = model.model(model.pre_processor.transform(torch.stack(images))).pred_score
    data = make_data(tmp_path, normal_dir="dark", normal_test_dir="test", test_split_mode="from_dir")
    data.setup()
    assert data.train_data.reader.white == 1023
    # as the audit does
    _, raw, *_ = next(iterate_predictions(model, data.train_data, device="cpu", progress=False))
    torch.testing.assert_close(raw, expected, atol=1e-3, rtol=0)
    # as a test does
    by_path = by_name(trained.engine.predict(model, data_path=tmp_path / "dark"))
    tested = trained.engine.predict(model, datamodule=data)
    assert by_name(tested) == pytest.approx(by_path, abs=1e-3)
    assert data.test_data.reader.white == 4095


def test_stock_data_modules_read_alike_too(trained: Trained, tmp_path: Path) -> None:
    model, engine = make_model(), make_engine(tmp_path)
    splits = {"normal_test_dir": ".", "test_split_mode": "from_dir", "val_split_mode": "same_as_test"}
    engine.fit(model, datamodule=make_data(trained.folder, Folder, **splits))
    assert model.white_level == 4095
    assert by_name(engine.predict(model, data_path=trained.folder)) == pytest.approx(trained.scores, abs=1e-3)


@pytest.mark.parametrize("wrap", ["none", "part", "parts"])
def test_loaders_of_one_s_own_read_alike_too(trained: Trained, tmp_path: Path, wrap: str) -> None:
    data, model, engine = make_data(trained.folder, Folder), make_model(), make_engine(tmp_path)
    data.setup()
    dataset = data.train_data
    if wrap != "none":
        dataset = Subset(data.train_data, range(8))
    if wrap == "parts":
        dataset = ConcatDataset([Subset(dataset, range(5)), Subset(dataset, range(5, 8))])
    engine.fit(model, train_dataloaders=DataLoader(dataset, 4, collate_fn=data.train_data.collate_fn))
    assert model.white_level == 4095
    assert torch.equal(data.train_data[0].image, read_image(trained.folder / "0.png", white=4095))


@pytest.mark.parametrize("kind", [ExportType.TORCH, ExportType.ONNX, ExportType.OPENVINO])
def test_exports_score_what_read_image_reads(
    trained: Trained, tmp_path: Path, kind: ExportType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    monkeypatch.chdir(tmp_path)
    # raw scores: normalisation would make much of what precision does
    model = Cdd.load_from_checkpoint(trained.checkpoint, pre_processor=trained.model.pre_processor, visualizer=False)
    model.post_processor = None
    scores = by_name(make_engine(tmp_path).predict(model, data_path=trained.folder))
    path = trained.engine.export(model, kind, export_root=tmp_path)
    if kind == ExportType.TORCH:
        inferencer: Any = TorchInferencer(path, device="cpu")
        assert inferencer.model.white_level == 4095
    else:
        inferencer = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})

    def score(name: str, white: int) -> float:
        with torch.inference_mode():
            found = inferencer.predict(read_image(trained.folder / name, white=white)).pred_score
        return float(np.asarray(found).squeeze())

    for name, expected in scores.items():
        assert score(name, model.white_level) == pytest.approx(expected, abs=1e-3)
        assert abs(score(name, 65535) - expected) > 2e-3


def test_eight_bits_are_read_alike(tmp_path: Path) -> None:
    """What was true before deep images and has to stay so, but for the side that images lie on."""
    folder, model, engine = write(tmp_path / "images", bits=8), make_model(), make_engine(tmp_path)
    engine.fit(model, datamodule=make_data(folder))
    assert model.white_level == 65535
    assert torch.load(engine.trainer.checkpoint_callback.best_model_path)["white_level"] is None
    by_file = by_name(engine.predict(model, data_path=folder))
    data = make_data(folder)
    data.setup()
    loader = DataLoader(data.train_data, batch_size=4, collate_fn=data.train_data.collate_fn)
    assert by_name(engine.predict(model, dataloaders=loader)) == pytest.approx(by_file, abs=1e-3)


def test_a_grey_augmentation_trains(tmp_path: Path) -> None:
    folder, model, engine = write(tmp_path / "images", bits=8), make_model(), make_engine(tmp_path)
    engine.fit(model, datamodule=make_data(folder, augmentations=Grayscale()))
    assert len(engine.predict(model, data_path=folder)) == 8


# --- models of anomalib


def small_patchcore() -> Patchcore:
    pre_processor = PreProcessor(Resize(SIZE, antialias=True))
    return Patchcore("test_resnet", ["layer2"], pre_trained=False, pre_processor=pre_processor, visualizer=False)


def test_deep_images_are_refused_to_a_model_that_would_predict_them_white(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"more than eight bits, .* when Patchcore predicts: save them with eight bits"
    ):
        make_engine(tmp_path).fit(small_patchcore(), datamodule=make_data(trained.folder))
    data = make_data(trained.folder)
    data.setup()
    with pytest.raises(ValueError, match=r"more than eight bits, .* when Patchcore predicts"):
        next(iterate_predictions(small_patchcore(), data.train_data, device="cpu", progress=False))


def test_synthetic_anomalies_on_deep_images_are_refused(trained: Trained) -> None:
    with pytest.raises(ValueError, match="synthetic anomalies are drawn on images of eight bits"):
        make_data(trained.folder, val_split_mode="synthetic").setup()


def test_a_model_of_anomalib_trains_on_eight_bits(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    engine.fit(small_patchcore(), datamodule=make_data(write(tmp_path / "images", bits=8)))
    assert engine.trainer.state.finished


def test_a_data_set_s_own_way_to_read_is_left_to_it(trained: Trained) -> None:
    class Own(PredictDataset):
        def __getitem__(self, index: int) -> Any:
            item = super().__getitem__(index)
            item.image = torch.zeros(3, *SIZE)
            return item

    scores = by_name(trained.engine.predict(trained.model, dataset=Own(trained.folder)))
    assert len(set(scores.values())) == 1


# --- files


def test_hidden_files_are_not_predicted(trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "images")
    (folder / "._0.png").write_bytes(b"left behind")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "0.png").rename(folder / ".ipynb_checkpoints" / "0.png")
    assert len(trained.engine.predict(trained.model, data_path=folder)) == 7
    assert "2 hidden files left out of the 9 to predict" in caplog.text
    # one that is asked for
    (folder / ".1.png").write_bytes((folder / "1.png").read_bytes())
    assert len(trained.engine.predict(trained.model, data_path=folder / ".1.png")) == 1


def test_a_part_of_the_files_stays_that_part_where_some_are_hidden(trained: Trained, tmp_path: Path) -> None:
    for name in (".hidden.png", "a.png", "b.png", "c.png"):
        Image.fromarray(np.asarray(photograph(ord(name[0]), 12))).save(tmp_path / name)
    files = PredictDataset(tmp_path)
    rows = [row for row, path in enumerate(files.image_filenames) if Path(path).name in {"b.png", "c.png"}]
    loader = DataLoader(Subset(files, rows), collate_fn=files.collate_fn)
    assert set(by_name(trained.engine.predict(trained.model, dataloaders=loader))) == {"b.png", "c.png"}


def test_a_broken_image_to_predict_is_named(trained: Trained, tmp_path: Path) -> None:
    (write(tmp_path / "images") / "5.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*images/5\.png"):
        trained.engine.predict(trained.model, data_path=tmp_path / "images")


def test_images_to_predict_travel_to_worker_processes(trained: Trained) -> None:
    images = pickle.loads(pickle.dumps(PredictImages(trained.folder, white=4095)))  # noqa: S301
    assert type(images).__name__ == "PredictImages"
    assert torch.equal(images[2].image, read_image(trained.folder / "2.png", white=4095))


def test_the_command_line_predicts_any_path_and_draws_what_the_model_saw(trained: Trained, tmp_path: Path) -> None:
    folder = write(tmp_path / "Prüfteile 部品")
    (folder / "0.png").rename(folder / "Größe 1.png")
    transform = "--model.pre_processor.init_args.transform"
    main(
        [
            "predict", f"--ckpt_path={trained.checkpoint}", f"--data={folder}",
            f"--default_root_dir={tmp_path / 'out'}",
            "--model=Cdd", "--model.backbone=test_resnet", "--model.pre_trained=false", "--model.student_width=8",
            "--model.pre_processor=anomalib.pre_processing.PreProcessor",
            f"{transform}=torchvision.transforms.v2.Resize", f"{transform}.init_args.size=[64, 48]",
            "--trainer.accelerator=cpu",
        ]
    )  # fmt: skip
    drawn = {path.name: path for path in (tmp_path / "out").rglob("*.png")}
    assert drawn.keys() == {"Größe 1.png", *(f"{number}.png" for number in range(1, 8))}
    with Image.open(drawn["1.png"]) as picture:
        seen = np.asarray(picture.convert("L"), dtype=float)[80:240, :256]
    left, right = seen[:, 20:110].mean(), seen[:, 150:240].mean()
    assert left > right + 20  # upright
    assert left < 200  # and not clipped to white


def test_the_command_line_names_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: there is no file or folder .*nowhere"):
        main(["predict", "--model=Cdd", "--model.backbone=test_resnet", "--model.pre_trained=false",
              f"--data={tmp_path / 'nowhere'}", f"--default_root_dir={tmp_path}"])  # fmt: skip
