# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Bad input: every refusal names the value and the way out, and comes before anything is lost."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torchvision.transforms.v2 import Resize

from anomalib_cdd import Cdd, MVTecNoisy
from anomalib_cdd.models.cdd.checks import PERSISTENT_STEPS, check_size

Model = Callable[..., Cdd]
Data = Callable[..., MVTecNoisy]
Engines = Callable[..., Engine]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": []}, "domains"),
        ({"domains": 2}, r"domains is 2; .* such as \[2\]"),
        ({"domains": (2, 1)}, r"domains is \(2, 1\)"),
        ({"max_confident": 1.5}, r"max_confident is 1.5; it has to be in \[0, 1\]"),
        ({"max_confident": float("nan")}, "max_confident is nan"),
        ({"confident_patches": 1.01}, r"confident_patches is 1.01; it has to be in \[0, 1\]"),
        ({"confident_patches": 0.9, "selection": "all"}, r"confident_patches \(0.9\) needs one student's word"),
        ({"regularization": "linaer"}, "regularization is 'linaer'"),
        ({"regularization": -1.0}, "regularization is -1.0"),
        ({"selection": "best"}, "selection is 'best'; it has to be one of consensual, next, all"),
        ({"feature_noise": -0.1}, "feature_noise is -0.1"),
        ({"domain_students": "copied"}, "domain_students is 'copied'"),
        ({"domain_students": 1.5}, "domain_students is 1.5"),
        ({"domain_interval": 0}, "domain_interval is 0; it has to be a number of epochs, 1 or more"),
        ({"domain_interval": 1.5}, "domain_interval is 1.5"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"cache_dir": __file__}, r"cache_dir is '.*test_checks\.py'; it has to be a folder"),
        ({"domain_construction": False}, "pseudo_normal needs domain_construction"),
    ],
)
def test_options_out_of_range(make_model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"max_epochs": -1}, "max_epochs is -1"),
        ({"max_epochs": 2, "max_steps": 10}, "max_steps is 10.*max_epochs instead"),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, "accumulate_grad_batches"),
        ({"max_epochs": 2, "devices": 2}, "SingleDeviceStrategy.*strategy: ddp"),
        ({"max_epochs": 2, "val_check_interval": 0.5}, "val_check_interval is 0.5"),
        ({"max_epochs": 2, "callbacks": [ModelCheckpoint(every_n_train_steps=3)]}, "ModelCheckpoint saves within"),
        (
            {"max_epochs": 2, "callbacks": [ModelCheckpoint(save_on_exception=True, every_n_epochs=2)]},
            "ModelCheckpoint saves within an epoch, by .* or save_on_exception",
        ),
        (
            {"max_epochs": 2, "callbacks": [ModelCheckpoint(train_time_interval=timedelta(minutes=1))]},
            "every_n_epochs instead",
        ),
    ],
)
def test_trainers_that_would_train_something_else(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    options: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if options.pop("devices", 1) == 2:
        monkeypatch.setattr("lightning.pytorch.Trainer.world_size", 2)
    with pytest.raises((ValueError, MisconfigurationException), match=message):
        make_engine(**options).fit(make_model(), datamodule=make_data())


@pytest.mark.parametrize("batch_size", [3, 2])
def test_batches_that_do_not_divide_over_the_devices(make_model: Model, batch_size: int) -> None:
    trainer = SimpleNamespace(world_size=2, max_epochs=2)
    with pytest.raises(ValueError, match=rf"train_batch_size is {batch_size}.*multiple of 2 and 4 or more"):
        check_size(100, batch_size, trainer, make_model().options)  # type: ignore[arg-type]


def test_the_command_lines_optimizer_is_refused(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    model = make_model()
    # what anomalib's CLI does with --optimizer
    one = torch.optim.Adam(model.model.student.parameters())
    model.configure_optimizers = MethodType(lambda self: one, model)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"--optimizer.*--model.learning_rate"):
        make_engine().fit(model, datamodule=make_data())


def test_training_sets_that_are_too_small(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    with pytest.raises(ValueError, match="5 training images are too few for 3 domains, which take 6"):
        make_engine(4).fit(make_model(domains=(2, 3, 3, 2)), datamodule=make_data(max_normal=4))
    with pytest.raises(ValueError, match="train_batch_size is 1"):
        make_engine(1).fit(make_model(), datamodule=make_data(train_batch_size=1))


def test_a_full_disk_while_caching_says_how_much_is_needed(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = tmp_path / "cache"
    with pytest.raises(OSError, match=r"No room for the feature cache.*MiB needed.*cache_dir"):
        make_engine().fit(make_model(cache_memory_gb=0, cache_dir=str(cache)), datamodule=make_data())
    assert not list(cache.iterdir())


def test_a_corrupt_training_image_is_named(
    make_model: Model, make_engine: Engines, mvtec_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(mvtec_root, root)
    for content in (b"", b"no image"):
        (root / "bottle" / "train" / "good" / "003.png").write_bytes(content)
        data = MVTecNoisy(root=root, train_batch_size=4, num_workers=0, val_split_mode="none")
        with pytest.raises((ValueError, OSError), match=r"003\.png"):
            make_engine().fit(make_model(), datamodule=data)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def checkpoint_of(model: LightningModule, data: MVTecNoisy, engine: Engine) -> Path:
    engine.fit(model, datamodule=data)
    return Path(engine.trainer.checkpoint_callback.best_model_path)


def test_checkpoints_of_something_else(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
    tmp_path: Path,
) -> None:
    path = checkpoint_of(make_model(), make_data(), make_engine(1))
    other = make_model(backbone="test_convnext")
    with pytest.raises(ValueError, match=r"not of this model.*'test_resnet'.*'test_convnext'"):
        make_engine(1).predict(other, datamodule=make_data(), ckpt_path=path)
    wider = make_model(student_width=16)
    with pytest.raises(ValueError, match="not of this model"):
        make_engine(1).fit(wider, datamodule=make_data(), ckpt_path=path)

    checkpoint = torch.load(path, weights_only=True)
    foreign = {**checkpoint, "hyper_parameters": {"num_neighbors": 9}, "state_dict": {"model.bank": torch.zeros(1)}}
    torch.save(foreign, tmp_path / "patchcore.ckpt")
    with pytest.raises(ValueError, match="not of this model"):
        Cdd.load_from_checkpoint(tmp_path / "patchcore.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt is damaged, or is no checkpoint\.$"):
        Cdd.load_from_checkpoint(tmp_path / "text.ckpt")
    whole = path.read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.ckpt is damaged") as raised:
        Cdd.load_from_checkpoint(tmp_path / "half.ckpt")
    assert "could run code" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        Cdd.load_from_checkpoint(tmp_path / "none.ckpt")


def test_checkpoints_never_run_code(make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path) -> None:
    path = checkpoint_of(make_model(), make_data(), make_engine(1))
    evil = {**torch.load(path, weights_only=True), "extra": _Evil(tmp_path / "ran")}
    torch.save(evil, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt.*could run code"):
        Cdd.load_from_checkpoint(tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt.*could run code"):
        make_engine(2).fit(make_model(), datamodule=make_data(), ckpt_path=tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_features_that_are_not_finite_name_the_teacher_or_student(
    make_model: Model,
    make_data: Data,
    make_engine: Engines,
) -> None:
    model = make_model()
    with torch.no_grad():
        next(model.model.teacher.parameters()).fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        make_engine(1).fit(model, datamodule=make_data())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("domain_students", "forked", "'forked', this model 'persistent'.*Set domain_students to 'forked'"),
        ("domain_interval", 3, "3, this model 2.*Set domain_interval to 3"),
        ("max_confident", 0.5, r"0.5, this model 0.0.*Set max_confident to 0.5"),
        ("confident_patches", 0.0, r"0.0, this model 0.95.*Set confident_patches to 0.0"),
    ],
)
def test_a_training_does_not_go_on_as_another_method(
    make_model: Model, make_data: Data, make_engine: Engines, name: str, value: Any, said: str
) -> None:
    path = checkpoint_of(make_model(**{name: value}), make_data(), make_engine(1))
    other = make_model()
    with pytest.raises(ValueError, match=said):
        make_engine(2).fit(other, datamodule=make_data(), ckpt_path=path)
    assert make_engine(1).predict(other, datamodule=make_data(), ckpt_path=path)


def test_no_checkpoint_is_saved_within_an_epoch(make_model: Model, make_data: Data, make_engine: Engines) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                trainer.save_checkpoint(Path(trainer.default_root_dir) / "middle.ckpt")

    with pytest.raises(RuntimeError, match="Epoch 0 is under way"):
        make_engine(2, callbacks=[Save()]).fit(make_model(), datamodule=make_data())


@pytest.mark.parametrize(("limit", "images"), [(2, 8), (0.5, 8), (1.0, 15), (1, 4), (99, 15)])
def test_limit_train_batches_trains_on_so_many_images(
    make_model: Model, make_data: Data, make_engine: Engines, limit: float, images: int
) -> None:
    model = make_model(domains=(2,))
    engine = make_engine(2, limit_train_batches=limit)
    engine.fit(model, datamodule=make_data())
    assert len(model.training_history.image_paths) == len(set(model.training_history.image_paths)) == images
    assert engine.trainer.current_epoch == 2


def test_fast_dev_run_takes_one_batch_through_everything(make_model: Model, make_data: Data, tmp_path: Path) -> None:
    model = make_model(domains=(2,))
    Engine(fast_dev_run=True, accelerator="cpu", default_root_dir=tmp_path).fit(model, datamodule=make_data())
    assert len(model.training_history.cross_domain) == 1
    assert len(model.training_history.image_paths) == 4


def test_the_budget_is_told_and_too_few_steps_are_warned_of(
    make_model: Model, make_data: Data, make_engine: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "anomalib_cdd"):
        engine = make_engine(2)
        model = make_model(domain_students="persistent", max_confident=0.0)
        engine.fit(model, datamodule=make_data())
    # 15 images in batches of 4: 4 steps an epoch
    assert "will take 8 optimiser steps in 2 epochs" in caplog.text
    assert "about 3000 at the paper's 200 epochs" in caplog.text
    warning = next(
        record for record in caplog.records if record.levelname == "WARNING" and "steps are few" in record.msg
    )
    assert warning.getMessage().endswith(f"Set max_epochs to {-(-PERSISTENT_STEPS * 2 // 8)} or more.")
    caplog.clear()
    off = {"pseudo_normal": False, "domain_construction": False, "regularization": 0.0}
    make_engine(2).fit(make_model(**off), datamodule=make_data())
    assert "steps are few" not in caplog.text


def test_options_that_have_no_effect_are_named(make_model: Model, caplog: pytest.LogCaptureFixture) -> None:
    off = {"pseudo_normal": False, "domain_construction": False}
    make_model(**off, regularization=0.0)
    assert not caplog.records
    make_model(**off, selection="all", regularization="linear")
    assert "regularization ('linear'), selection ('all') has no effect" in caplog.text
    caplog.clear()
    make_model(confident_once=False, max_confident=0.5)
    assert not caplog.records
    make_model(confident_once=False, confident_distillation=False)
    assert "no confident images: confident_distillation (False), confident_once (False) has no effect" in caplog.text
    caplog.clear()
    # the global student visits a confident image once for each of four domains
    images = {"pseudo_normal": False, "max_confident": 0.5, "domains": (4,)}
    make_model(**images, confident_once=False)
    assert not caplog.records
    make_model(**images)
    assert "no domain student is trained: domains ((4,)) has no effect" in caplog.text


def test_images_that_are_too_small_for_the_blur_are_named(
    make_model: Model, make_data: Data, make_engine: Engines
) -> None:
    model = make_model(pre_processor=PreProcessor(Resize((16, 16))))
    with pytest.raises(ValueError, match=r"images, or tiles, of 16 x 16 pixels.*larger Resize"):
        make_engine(1).fit(model, datamodule=make_data())
    make_engine(1).fit(make_model(pre_processor=PreProcessor(Resize((24, 24)))), datamodule=make_data())


def test_a_training_goes_on_with_the_domains_that_it_has(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> None:
    make_engine(max_epochs=1).fit(make_model(domains=[3]), datamodule=make_data())
    (checkpoint,) = (tmp_path / "results").rglob("*.ckpt")
    with pytest.raises(ValueError, match=r"has domains \(3,\), this model \(2,\).* Set domains to \(3,\)"):
        make_engine(max_epochs=2).fit(make_model(), datamodule=make_data(), ckpt_path=checkpoint)
    make_engine(max_epochs=2).fit(make_model(domains=[3]), datamodule=make_data(), ckpt_path=checkpoint)


def test_a_checkpoint_at_an_error_is_refused(
    make_model: Model, make_data: Data, make_engine: Engines, tmp_path: Path
) -> None:
    engine = make_engine(2, callbacks=[OnExceptionCheckpoint(tmp_path)])
    with pytest.raises(ValueError, match="OnExceptionCheckpoint saves within an epoch"):
        engine.fit(make_model(), datamodule=make_data())
