# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured: one function a row."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import timm
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore, ReverseDistillation, Stfpm
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from PIL import Image
from torch import Tensor

from anomalib_cdd import Cdd, FolderNoisy
from anomalib_cdd.models.cdd.features import FeatureBudget, TeacherFeatures
from anomalib_cdd.models.cdd.lightning_model import PAPER
from anomalib_cdd.models.cdd.training_set import teacher_levels
from anomalib_cdd.teachers.students import Student

from .measuring import Comparison, alternate, clock, take_turns

EPOCHS = 100
# of EPOCHS; domain students of the default learn in even epochs: e/E = .1 and .6 of these
POINTS = (10, 41, 60, 91)
WRN50 = {"backbone": "wide_resnet50_2.tv_in1k"}
LITE0 = {"backbone": "efficientnet_lite0_pypi", "relative_noise": True}
SWITCHES_OFF: dict[str, Any] = {
    "domain_construction": False,
    "confidence_guidance": False,
    "pseudo_normal": False,
    "confident_distillation": False,
    "regularization": 0.0,
    "feature_noise": 0.0,
}
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
# Patchcore's bank for 200 images of 784 patches, a tenth of them kept
BANK = (15_680, 1_536)
BOTH = (60, 61)  # an epoch with domain students that learn, and one without
PROFILED = 8  # operations


class Setting(NamedTuple):
    """How much is measured: rounds, torch's threads (0 for its own choice), whether sizes are tiny."""

    repeats: int
    threads: int
    quick: bool

    @property
    def side(self) -> int:
        """Side of an image."""
        return 64 if self.quick else 224


class EpochClock(Callback):
    """Takes the seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def make_images(folder: Path, count: int, side: int) -> FolderNoisy:
    """Write images of noise and return them as a training set, in batches of 16."""
    rng = np.random.default_rng(0)
    (folder / "good").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "good" / f"{number:04}.png")
    return training_set(folder, min(16, count))


def training_set(folder: Path, batch: int) -> FolderNoisy:
    """Return images that were made before."""
    options: dict[str, Any] = {"test_split_mode": "none", "val_split_mode": "none", "num_workers": 0}
    return FolderNoisy(name="noise", root=folder, normal_dir="good", noise_ratio=0, train_batch_size=batch, **options)


def cdd(setting: Setting, teacher: dict[str, Any], **options: Any) -> Cdd:
    """Return an untrained model for images as they are made."""
    plain: dict[str, Any] = {"pre_trained": False, "audit": False, "evaluator": False, "visualizer": False}
    pre_processor = Cdd.configure_pre_processor((setting.side, setting.side), (setting.side, setting.side))
    return Cdd(**plain, **teacher, pre_processor=pre_processor, post_processor=False, **options)


def epoch_seconds(
    model: Any,
    data: Any,
    folder: Path,
    points: tuple[int, ...] = POINTS,
    callbacks: tuple[Callback, ...] = (),
    **trainer: Any,
) -> list[float]:
    """Train an epoch of warm-up and one at each point of the schedule, in Lightning's own loop; time the latter."""
    if isinstance(model, Cdd):
        epoch, at = model.epoch, (points[0], *points)
        model.epoch = lambda e, epochs: epoch(at[e], EPOCHS)  # type: ignore[method-assign]
    timer = EpochClock()
    callbacks = (timer, ModelCheckpoint(save_top_k=0), *callbacks)
    options: dict[str, Any] = {**QUIET, "accelerator": "cpu", "devices": 1, "callbacks": list(callbacks)} | trainer
    gc.collect()  # trainers and models refer to each other: the last ones would still be there
    engine = Engine(max_epochs=len(points) + 1, default_root_dir=folder, **options)
    engine.fit(model, datamodule=data)
    return timer.seconds[1:]


class Side(NamedTuple):
    """A model whose epochs are compared: what it is called, how it is made, the largest ratio that is aimed at."""

    what: str
    make: Callable[[], Any]
    aim: float | None = None


def _compare_epochs(
    setting: Setting, folder: Path, count: int, rival: Callable[[], Any], *sides: Side
) -> list[Comparison]:
    """Compare epochs of some models with those of one rival, round by round."""
    data = make_images(folder, count, setting.side)
    makes = [rival, *(side.make for side in sides)]
    rounds = [[epoch_seconds(make(), data, folder) for make in makes] for _ in range(setting.repeats)]
    note = f"{count} images of {setting.side} pixels, features cached before, batch {min(16, count)}"
    rivals = [sum(seconds[0]) / len(seconds[0]) for seconds in rounds]
    comparisons = []
    for number, side in enumerate(sides, 1):
        mine = [seconds[number] for seconds in rounds]
        for i, point in enumerate(POINTS):
            at = f"{side.what}, e/E = {point / EPOCHS:g}"
            comparisons.append(Comparison(at, [seconds[i] for seconds in mine], rivals))
        means, mean = [sum(seconds) / len(seconds) for seconds in mine], f"{side.what}, mean over the schedule"
        comparisons.append(Comparison(mean, means, rivals, aim=side.aim, note=note))
    return comparisons


def epoch_wrn50(setting: Setting, folder: Path) -> list[Comparison]:
    """An epoch of CDD against one of anomalib's ReverseDistillation as it ships, WRN50."""
    teacher = {"backbone": "resnet18"} if setting.quick else WRN50

    def rival() -> ReverseDistillation:
        pre_processor = Cdd.configure_pre_processor((setting.side, setting.side), (setting.side, setting.side))
        backbone = teacher["backbone"].split(".")[0]
        return ReverseDistillation(
            backbone=backbone, pre_trained=False, pre_processor=pre_processor, post_processor=False, evaluator=False,
            visualizer=False,
        )  # fmt: skip

    return _compare_epochs(
        setting, folder, 8 if setting.quick else 16, rival,
        Side("CDD, the paper's / RD, both in fp32", lambda: cdd(setting, teacher, **PAPER), 3.6),
        Side("CDD / RD, both in fp32", lambda: cdd(setting, teacher), 2.5),
    )  # fmt: skip


def epoch_lite0(setting: Setting, folder: Path) -> list[Comparison]:
    """An epoch of CDD against one with every switch off, whose teacher is cached too, Lite0, fp32."""
    return _compare_epochs(
        setting, folder, 8 if setting.quick else 64, lambda: cdd(setting, LITE0, **SWITCHES_OFF),
        Side("CDD, the paper's / switches off", lambda: cdd(setting, LITE0, **PAPER)),
        Side("CDD / switches off", lambda: cdd(setting, LITE0), 2.5),
    )  # fmt: skip


def inference(setting: Setting, folder: Path) -> list[Comparison]:
    """Inference at batch 1 and 32, each model beside ReverseDistillation in the same backend and precision."""
    models = _untrained_models(setting)
    data = make_images(folder / "images", 4, setting.side)
    exported = {name: _openvino_form(setting, model, folder / name) for name, model in models.items()}
    ours = [name for name, model in models.items() if isinstance(model, Cdd)]
    in_8_bits = {name: _openvino_form(setting, models[name], folder / f"{name} 8 bits", data) for name in ours}
    comparisons = []
    for batch in (1, 2 if setting.quick else 32):
        images = torch.rand(batch, 3, setting.side, setting.side)
        inferred = {("Lightning, fp32", name): partial(model, images) for name, model in models.items()}
        for form, hint in PRECISIONS.items():
            inferred |= {(form, name): _compiled(model, images, hint) for name, model in exported.items()}
        inferred |= {(IN_8_BITS, name): _compiled(model, images, {}) for name, model in in_8_bits.items()}
        sides = {side: infer for side, infer in inferred.items() if infer is not None}
        left_out = ", ".join(f"{name} in {form}" for form, name in inferred if (form, name) not in sides)
        with torch.no_grad():
            # a round of 32 takes minutes, and its timings spread less
            times = take_turns(sides, setting.repeats if batch == 1 else 1)
        for (form, name), seconds in times.items():
            beside = "OpenVINO, its choice" if form == IN_8_BITS else form
            what = f"batch {batch}, {form}: {name} / {RIVAL}" + (f" in {beside}" if form != beside else "")
            aim = AIMS.get((form, name)) if batch == 1 else None
            note = f"exported for another batch and left out: {left_out}" if name == RIVAL and left_out else ""
            comparisons.append(Comparison(what, seconds, times[beside, RIVAL], aim=aim, note=note))
    return comparisons


RIVAL = "ReverseDistillation"
IN_8_BITS = "OpenVINO, student in 8 bits"
PRECISIONS = {"OpenVINO, fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "OpenVINO, its choice": {}}
AIMS = {("Lightning, fp32", "Cdd"): 0.9, (IN_8_BITS, "Cdd"): 0.6}


def _untrained_models(setting: Setting) -> dict[str, Any]:
    """Return models that have everything but sense: random weights, and statistics of the size that a fit leaves."""
    backbone = "resnet18" if setting.quick else "wide_resnet50_2"
    pre_processor = Cdd.configure_pre_processor((setting.side, setting.side), (setting.side, setting.side))
    plain: dict[str, Any] = {"pre_processor": pre_processor, "evaluator": False, "visualizer": False}
    plain["post_processor"] = False  # nothing has been fitted
    patchcore = Patchcore(backbone=backbone, pre_trained=False, **plain)
    patchcore.model.memory_bank = torch.rand(*((100, 384) if setting.quick else BANK))
    padim = Padim(pre_trained=False, **plain)
    patches, channels = (setting.side // 4) ** 2, padim.model.n_features
    padim.model.gaussian.mean = torch.rand(channels, patches)
    padim.model.gaussian.inv_covariance = torch.eye(channels).expand(patches, -1, -1).contiguous()
    create = timm.create_model
    # Stfpm has no option for a teacher of random weights
    with patch("timm.create_model", lambda *args, **kwargs: create(*args, **kwargs | {"pretrained": False})):
        stfpm = Stfpm(**plain)
    models = {
        "Cdd": cdd(setting, {"backbone": backbone}),
        "Cdd Lite0": cdd(setting, LITE0),
        "ReverseDistillation": ReverseDistillation(backbone=backbone, pre_trained=False, **plain),
        "Patchcore": patchcore,
        "Padim": padim,
        "Stfpm": stfpm,
    }
    return {name: model.eval() for name, model in models.items()}


def _openvino_form(setting: Setting, model: Any, folder: Path, data: FolderNoisy | None = None) -> Any:
    """Return an OpenVINO network, in 8 bits if there is data."""
    import openvino

    compression = {"compression_type": CompressionType.INT8_PTQ, "datamodule": data} if data else {}
    return openvino.Core().read_model(model.to_openvino(folder, input_size=(setting.side, setting.side), **compression))


def _compiled(model: Any, images: Tensor, hint: dict[str, str]) -> Callable[[], Any] | None:
    """Return the inference of a batch in OpenVINO, at the precision of the hint; ``None`` if the export takes none."""
    import openvino

    network = model.clone()
    try:
        network.reshape(images.shape)
    except RuntimeError:  # Patchcore's has the number of images that it was traced with in it
        return None
    return partial(openvino.compile_model(network, "CPU", hint), images.numpy())


def memory(setting: Setting, folder: Path) -> list[Comparison]:
    """Memory for each cached training image, in memory and on disk."""
    teacher = {"backbone": "resnet18"} if setting.quick else WRN50
    count = 8 if setting.quick else 32
    data = make_images(folder, count, setting.side)
    data.setup()
    model = cdd(setting, teacher)
    comparisons = []
    for place, memory_gb, aim in (("in memory", 8.0, 2.9), ("on disk", 0.0, None)):
        extract = partial(
            teacher_levels, model.model, model.pre_processor.transform, torch.device("cpu"), torch.float32
        )
        features = TeacherFeatures(data.train_dataloader(), extract, torch.device("cpu"))
        before = _own_memory()
        features.fill(FeatureBudget(memory_gb, folder))
        taken = (_own_memory() - before) / count / 1e6
        assert features.cache is not None
        size = features.cache.size / count / 1e6
        comparisons += [
            Comparison(f"cache {place}: growth of the process an image", [taken], unit="MB", note=f"{count} images"),
            Comparison(f"cache {place}: the cache itself an image", [size], [1.0], aim=aim, unit="MB"),
        ]
        features.cache.release()
    return comparisons


def _own_memory() -> float:
    """Return the bytes of memory that are the process's own, mapped files apart."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def start_up(setting: Setting, folder: Path) -> list[Comparison]:
    """From the command to a printed configuration, against Padim."""

    def run(model: str) -> None:
        code = "from anomalib.cli.cli import main; main()"
        command = [sys.executable, "-c", code, "train", "--model", model, "--data", "MVTecAD", "--print_config"]
        subprocess.run(command, check=True, capture_output=True)

    times = alternate(lambda: run("anomalib_cdd.Cdd"), lambda: run("Padim"), setting.repeats)
    over = [ours - rival for ours, rival in zip(*times, strict=True)]
    return [
        Comparison("Cdd / Padim", *times),
        Comparison("Cdd - Padim, aim 0.5 s", over, [1.0] * len(over), aim=0.5),
    ]


def linear(setting: Setting, folder: Path) -> list[Comparison]:
    """An epoch of twice as many images, Lite0."""
    count = 8 if setting.quick else 32
    twice, once = [], []
    many, few = (make_images(folder / str(n), n, setting.side) for n in (2 * count, count))
    for _ in range(setting.repeats):
        twice.append(sum(epoch_seconds(cdd(setting, LITE0), many, folder)))
        once.append(sum(epoch_seconds(cdd(setting, LITE0), few, folder)))
    return [Comparison(f"{2 * count} images / {count}", twice, once, aim=2.1)]


def devices(setting: Setting, folder: Path) -> list[Comparison]:
    """An epoch of two processes, a thread each, against one process with one thread and with two, Lite0."""
    make_images(folder, 8 if setting.quick else 64, setting.side)
    one: dict[str, Any] = {"devices": 1, "quick": setting.quick}
    two = one | {"devices": 2, "threads": 1}
    sides = {
        "two processes": two,
        "one process, a thread": one | {"threads": 1},
        "one process, two threads": one | {"threads": 2},
    }
    rounds = [{side: _of_several(folder, options) for side, options in sides.items()} for _ in range(setting.repeats)]
    seconds = {side: [each[side] for each in rounds] for side in sides}
    return [
        Comparison(f"two processes / {rival}", seconds["two processes"], seconds[rival])
        for rival in ("one process, a thread", "one process, two threads")
    ]


def _of_several(folder: Path, options: dict[str, Any]) -> float:
    """Return the mean epoch over the schedule, of processes of their own."""
    command = [sys.executable, "-m", "benchmarks.devices", str(folder), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    seconds = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("[")))
    return sum(seconds) / len(seconds)


def overhead(setting: Setting, folder: Path) -> list[Comparison]:
    """What of an epoch is not the students' forward, backward and optimiser steps."""
    comparisons = []
    teachers = {"test_resnet": {"backbone": "test_resnet"}} if setting.quick else {"WRN50": WRN50, "Lite0": LITE0}
    for name, teacher in teachers.items():
        count = 8 if setting.quick else 16
        data, shares = make_images(folder / name, count, setting.side), []
        for _ in range(1 if name == "WRN50" else setting.repeats):
            parts = {"forward": 0.0, "backward": 0.0, "step": 0.0}
            saved = Student.forward, Cdd.manual_backward, LightningOptimizer.step
            Student.forward = _timed(saved[0], parts, "forward")  # type: ignore[method-assign]
            Cdd.manual_backward = _timed(saved[1], parts, "backward")  # type: ignore[method-assign]
            LightningOptimizer.step = _timed(saved[2], parts, "step")  # type: ignore[method-assign]
            try:
                timing = (_Forget(parts),)
                seconds = epoch_seconds(cdd(setting, teacher), data, folder / name, points=BOTH, callbacks=timing)
            finally:
                Student.forward, Cdd.manual_backward, LightningOptimizer.step = saved  # type: ignore[method-assign]
            shares.append(1 - sum(parts.values()) / sum(seconds))
        comparisons.append(Comparison(f"{name}, two epochs", shares, [1.0] * len(shares), aim=0.05, unit="of an epoch"))
        comparisons += _profile(name, cdd(setting, teacher), data, folder / name)
    return comparisons


def _profile(name: str, model: Cdd, data: FolderNoisy, folder: Path) -> list[Comparison]:
    """Return the share of each of the costliest operations in an epoch, by torch's profiler."""
    profiler = _Profiler()
    epoch_seconds(model, data, folder, points=BOTH[::-1], callbacks=(profiler,))
    operations = profiler.profile.key_averages()
    total = sum(each.self_cpu_time_total for each in operations)
    costliest = sorted(operations, key=lambda each: -each.self_cpu_time_total)[:PROFILED]
    return [
        Comparison(
            f"{name}, profile: {each.key} x {each.count}", [each.self_cpu_time_total / total], unit="of the epoch"
        )
        for each in costliest
    ]


class _Profiler(Callback):
    """Profiles the last epoch alone."""

    def __init__(self) -> None:
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == trainer.max_epochs - 1:
            self.profile.start()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == trainer.max_epochs - 1:
            self.profile.stop()


class _Forget(Callback):
    """Counts the epochs after the warm-up."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts = parts

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch <= 1:
            self.parts.update(dict.fromkeys(self.parts, 0.0))


def _timed(work: Callable[..., Any], parts: dict[str, float], part: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        result: list[Any] = []
        parts[part] += clock(lambda: result.append(work(*args, **kwargs)))
        return result[0]

    return timed


ROWS: dict[str, Callable[[Setting, Path], list[Comparison]]] = {
    "epoch_wrn50": epoch_wrn50,
    "epoch_lite0": epoch_lite0,
    "inference": inference,
    "memory": memory,
    "start_up": start_up,
    "linear": linear,
    "devices": devices,
    "overhead": overhead,
}
