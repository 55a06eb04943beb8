# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured: one function a row."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore, ReverseDistillation
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer

from anomalib_cdd import Cdd, CrossPatch, Dmdd, Dtsnet, FolderNoisy, Mhkd, ReContrast, SoftPatch, Urd
from anomalib_cdd.models.cdd.features import FeatureBudget, TeacherFeatures
from anomalib_cdd.models.cdd.lightning_model import PAPER
from anomalib_cdd.models.cdd.training_set import teacher_levels
from anomalib_cdd.teachers.students import Student

from .audits import audit
from .inference import inference
from .measuring import Comparison, alternate, clock
from .setting import EPOCHS, LITE0, POINTS, QUIET, SWITCHES_OFF, WRN50, Setting, cdd, epoch_seconds, make_images

BOTH = (60, 61)  # an epoch with domain students that learn, and one without
PROFILED = 8  # operations


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


def epoch_siblings(setting: Setting, folder: Path) -> list[Comparison]:
    """An epoch of each model that distils against one of `Cdd` with every switch off, teacher cached, Lite0."""
    count = 8 if setting.quick else 64
    data, note = make_images(folder, count, setting.side), f"{count} images of {setting.side} pixels, fp32, one round"
    options = plain(setting, LITE0["backbone"])
    rival = epoch_seconds(cdd(setting, LITE0, **SWITCHES_OFF), data, folder)
    return [
        Comparison(
            f"{model.__name__} / switches off",
            epoch_seconds(model(**options), data, folder, points=(0,)),  # type: ignore[operator]
            [sum(rival) / len(rival)],
            note=note,
        )
        for model in (ReContrast, Urd, Dtsnet, Dmdd, Mhkd)
    ]


def fit_banks(setting: Setting, folder: Path) -> list[Comparison]:
    """The whole fit of memory banks against that of Patchcore at its own tenth, Lite0, fp32, one round."""
    count = 8 if setting.quick else 64
    data = make_images(folder, count, setting.side)
    options = plain(setting, LITE0["backbone"])
    for_layers = {"layers": ["blocks.2.1.conv_pwl", "blocks.4.2.conv_pwl"]}  # strides 8 and 16
    rest = {name: option for name, option in options.items() if name != "audit"}
    makes: dict[str, Callable[[], Any]] = {
        "Patchcore": lambda: Patchcore(**rest, **for_layers),
        "CrossPatch": lambda: CrossPatch(**options),
        "SoftPatch": lambda: SoftPatch(**options),
        "Padim": lambda: Padim(**rest, **for_layers, n_features=100),
    }
    trainer = QUIET | {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": folder}
    seconds = {name: clock(partial(Engine(**trainer).fit, make(), datamodule=data)) for name, make in makes.items()}
    note = f"{count} images of {setting.side} pixels, one epoch, without the audit of the models that have one"
    return [
        Comparison(f"{name} / Patchcore", [taken], [seconds["Patchcore"]], note=note)
        for name, taken in seconds.items()
        if name != "Patchcore"
    ]


def plain(setting: Setting, backbone: str) -> dict[str, Any]:
    """Return the options of a model that is timed: no weights, and nothing that is not its own."""
    pre_processor = Cdd.configure_pre_processor((setting.side, setting.side), (setting.side, setting.side))
    off = dict.fromkeys(("pre_trained", "audit", "evaluator", "visualizer", "post_processor"), False)
    return off | {"backbone": backbone, "pre_processor": pre_processor}


def crosspatch(setting: Setting, folder: Path) -> list[Comparison]:
    """CrossPatch against Patchcore with as many patches of as many images, two images at a time, Lite0, fp32."""
    options = plain(setting, LITE0["backbone"]) | {"layers": ["blocks.2.1.conv_pwl", "blocks.4.2.conv_pwl"]}
    ours = CrossPatch(**options).eval()
    rival = Patchcore(**{name: option for name, option in options.items() if name != "audit"}).eval()
    images, patches = (4, 10) if setting.quick else (100, 78)
    channels, projected = ours.model.projection.shape
    ours.model.memory_bank = torch.rand(images, patches, projected)
    rival.model.memory_bank = torch.rand(images * patches, channels)
    batch = torch.rand(2, 3, setting.side, setting.side)  # what Patchcore's export takes
    sides = {
        "torch": (partial(ours.model, batch), partial(rival.model, batch)),
        "OpenVINO, fp32": tuple(_in_openvino(model, batch, folder) for model in (ours, rival)),
    }
    with torch.no_grad():
        return [
            Comparison(
                f"{backend}: CrossPatch / Patchcore", *alternate(*both, setting.repeats), aim=1.0, images=len(batch)
            )
            for backend, both in sides.items()
        ]


def _in_openvino(model: Any, batch: torch.Tensor, folder: Path) -> Callable[[], Any]:
    import openvino

    path = model.to_openvino(folder / type(model).__name__, input_size=tuple(batch.shape[-2:]))
    network = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return partial(network, batch.numpy())


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
        extract(next(iter(data.train_dataloader())))  # the room that a batch needs in any case
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
    "epoch_siblings": epoch_siblings,
    "fit_banks": fit_banks,
    "inference": inference,
    "crosspatch": crosspatch,
    "audit": audit,
    "memory": memory,
    "start_up": start_up,
    "linear": linear,
    "devices": devices,
    "overhead": overhead,
}
