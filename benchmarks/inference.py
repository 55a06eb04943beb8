# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What inference costs: time in each backend, size of the export, peak memory."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from anomalib.deploy import CompressionType
from anomalib.models import EfficientAd, Padim, Patchcore, ReverseDistillation, Stfpm
from torch import Tensor

from anomalib_cdd import Cdd, CrossPatch, Dmdd, Dtsnet, FolderNoisy, Mhkd, ReContrast, SoftPatch, Urd

from .measuring import Comparison, take_turns
from .setting import LITE0, Setting, cdd, make_images

Side = tuple[str, str]  # backend and precision, model
Make = Callable[[], Callable[[], Any] | None]  # makes what infers a batch, if it can be had

RIVAL = "ReverseDistillation"
IN_8_BITS = "OpenVINO, student in 8 bits"
PRECISIONS = {"OpenVINO, fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "OpenVINO, its choice": {}}
AIMS = {("Lightning, fp32", "Cdd"): 0.9, (IN_8_BITS, "Cdd"): 0.6}
# a training set of 200 images: a memory bank has a tenth of their 784 patches
IMAGES, PATCHES = 200, 78
PEAK = """
import sys, numpy, openvino
side = int(sys.argv[2])
network = openvino.Core().compile_model(sys.argv[1], "CPU")
try:
    network(numpy.zeros((1, 3, side, side), dtype=numpy.float32))
except RuntimeError:  # Patchcore's takes as many images as it was traced with
    network(numpy.zeros((2, 3, side, side), dtype=numpy.float32))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def inference(setting: Setting, folder: Path) -> list[Comparison]:
    """Inference at batch 1 and 32, each model beside ReverseDistillation in the same backend and precision."""
    models = untrained_models(setting)
    data = make_images(folder / "images", 4, setting.side)
    paths = {name: _exported(setting, model, folder / name) for name, model in models.items()}
    ours = [name for name, model in models.items() if isinstance(model, Cdd)]
    in_8_bits = {name: _exported(setting, models[name], folder / f"{name} 8 bits", data) for name in ours}
    comparisons = []
    for batch in (1, 2 if setting.quick else 32):
        images = {name: torch.rand(batch, 3, *2 * [_side(setting, model)]) for name, model in models.items()}
        groups: list[dict[Side, Make]] = [
            {("Lightning, fp32", name): partial(partial, model, images[name]) for name, model in models.items()},
            *(
                {(form, name): partial(_compiled, paths[name], images[name], hint) for name in models}
                for form, hint in PRECISIONS.items()
            ),
        ]
        groups[-1] |= {
            (IN_8_BITS, name): partial(_compiled, path, images[name], {}) for name, path in in_8_bits.items()
        }
        if batch > 1:  # a round takes minutes, and each network gigabytes: once each, one after another
            groups = [{side: make} for group in groups for side, make in group.items()]
        times: dict[Side, list[float]] = {}
        for group in groups:
            times |= _in_turn(group, setting.repeats if batch == 1 else 1)
        left_out = ", ".join(
            f"{name} in {form}" for group in groups for form, name in group if (form, name) not in times
        )
        for (form, name), seconds in times.items():
            beside = "OpenVINO, its choice" if form == IN_8_BITS else form
            what = f"batch {batch}, {form}: {name} / {RIVAL}" + (f" in {beside}" if form != beside else "")
            aim = AIMS.get((form, name)) if batch == 1 else None
            note = f"exported for another batch and left out: {left_out}" if name == RIVAL and left_out else ""
            comparisons.append(Comparison(what, seconds, times[beside, RIVAL], aim=aim, note=note, images=batch))
    for name, path in [*paths.items(), *((f"{name}, student in 8 bits", path) for name, path in in_8_bits.items())]:
        side = _side(setting, models[name.split(",")[0]])
        size = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
        what = f"{name}, OpenVINO: "
        comparisons += [
            Comparison(what + "size on disk", [size / 1e6], unit="MB"),
            Comparison(what + "peak memory of a process, batch 1", [_peak_memory(path, side)], unit="MB"),
        ]
    return comparisons


@torch.no_grad()
def _in_turn(makes: dict[Side, Make], repeats: int) -> dict[Side, list[float]]:
    """Make what infers and time it in turn; what cannot be made is left out. Nothing is kept."""
    made = {side: make() for side, make in makes.items()}
    return take_turns({side: infer for side, infer in made.items() if infer is not None}, repeats)


def untrained_models(setting: Setting) -> dict[str, Any]:
    """Return models that have everything but sense: random weights, and statistics of the size that a fit leaves.

    Without InReach: its bank is not reduced, and an image takes seconds.
    """
    backbone = "resnet18" if setting.quick else "wide_resnet50_2"
    pre_processor = Cdd.configure_pre_processor((setting.side, setting.side), (setting.side, setting.side))
    plain: dict[str, Any] = {"pre_processor": pre_processor, "evaluator": False, "visualizer": False}
    plain["post_processor"] = False  # nothing has been fitted
    teacher = plain | {"backbone": backbone, "pre_trained": False}
    small = plain | {"backbone": LITE0["backbone"], "pre_trained": False}
    patchcore = Patchcore(**teacher)
    patchcore.model.memory_bank = torch.rand(_bank_size(setting), sum(patchcore.model.feature_extractor.out_dims))
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
        RIVAL: ReverseDistillation(backbone=backbone, pre_trained=False, **plain),
        "Patchcore": patchcore,
        "CrossPatch": _with_bank(setting, CrossPatch(**teacher)),
        "CrossPatch Lite0": _with_bank(setting, CrossPatch(**small)),
        "SoftPatch": _with_bank(setting, SoftPatch(**teacher)),
        "SoftPatch Lite0": _with_bank(setting, SoftPatch(**small)),
        "ReContrast": ReContrast(**teacher),
        "Urd": Urd(**teacher),
        "Dtsnet": Dtsnet(**teacher),
        "Dmdd": Dmdd(**teacher),
        "Mhkd": Mhkd(pre_trained=False, **plain),
        "Padim": padim,
        "Stfpm": stfpm,
        "EfficientAd-S": EfficientAd(**plain | {"pre_processor": True}),
    }
    return {name: model.eval() for name, model in models.items()}


def _side(setting: Setting, model: Any) -> int:
    """Return the side of a model's images: EfficientAd takes none below its own 256."""
    return 256 if isinstance(model, EfficientAd) else setting.side


def _bank_size(setting: Setting) -> int:
    return 100 if setting.quick else IMAGES * PATCHES


def _with_bank(setting: Setting, model: Any) -> Any:
    """Fill a bank with random numbers: what it holds does not change the time."""
    network = model.model
    if isinstance(model, CrossPatch):
        images, patches = (10, 10) if setting.quick else (IMAGES, PATCHES)
        network.memory_bank = torch.rand(images, patches, network.projection.shape[1])
    else:
        channels = network.patches(torch.zeros(1, 3, setting.side, setting.side)).shape[1]
        network.bank.fill(torch.rand(_bank_size(setting), channels))
    return model


def _exported(setting: Setting, model: Any, folder: Path, data: FolderNoisy | None = None) -> Path:
    """Export to OpenVINO, with 8 bits if there is data."""
    compression = {"compression_type": CompressionType.INT8_PTQ, "datamodule": data} if data else {}
    side = _side(setting, model)
    return Path(model.to_openvino(folder, input_size=(side, side), **compression))


def _compiled(path: Path, images: Tensor, hint: dict[str, str]) -> Callable[[], Any] | None:
    """Return the inference of a batch in OpenVINO, at the precision of the hint; ``None`` if the export takes none."""
    import openvino

    network = openvino.Core().read_model(path)
    try:
        network.reshape(images.shape)
    except RuntimeError:  # Patchcore's has the number of images that it was traced with in it
        return None
    return partial(openvino.compile_model(network, "CPU", hint), images.numpy())


def _peak_memory(path: Path, side: int) -> float:
    """Return the peak memory, in MB, of a process that loads an export and infers one image."""
    command = [sys.executable, "-c", PEAK, str(path), str(side)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(ended.stdout) * 1024 / 1e6
