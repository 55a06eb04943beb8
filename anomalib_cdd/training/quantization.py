# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO in 8 bits, its ranges taken from unlabelled training images.

anomalib calibrates on validation images, of which there are none without labels.
"""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from anomalib.data import AnomalibDataModule
from torch import Tensor
from torch.nn import functional as F

from .read_alike import as_trained

if TYPE_CHECKING:
    import openvino

# more change nothing in ranges that are means over images
CALIBRATION_IMAGES = 300
# OpenVINO's operations for the length of a vector, with which cosine distances begin
NORMS = ("ReduceL2", "Sqrt")
PASSIVE = ("Constant", "Parameter", "Result")


def quantize(model: "openvino.Model", datamodule: AnomalibDataModule | None, trained: Any) -> "openvino.Model":
    """Quantise an exported model after training.

    Args:
        model: The exported model; its input is images of shape ``(B, 3, H, W)`` in [0, 1].
        datamodule: Knows the training images; no label and no test image is read.
        trained: The model that was exported; images are read as its training read them.

    Returns:
        A model whose student computes in 8 bits.

    Raises:
        ValueError: If there is no datamodule, or no anomaly map is found in the model.
        ModuleNotFoundError: If NNCF is not installed.
    """
    import nncf

    if datamodule is None:
        msg = "INT8_PTQ takes its ranges from training images: pass a datamodule (--data on the command line)."
        raise ValueError(msg)
    if not hasattr(datamodule, "train_data"):
        datamodule.setup("fit")
    shape = model.input(0).partial_shape
    size = (shape[2].get_length(), shape[3].get_length()) if shape[2].is_static and shape[3].is_static else None
    repeats = shape[0].get_length() if shape[0].is_static else 1
    images = _TrainingImages(datamodule, trained, size, repeats)
    return nncf.quantize(
        model,
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.MIXED,  # levels that are never negative lie beside signed ones
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=_all_but_student(model)),
    )


def _all_but_student(model: "openvino.Model") -> list[str]:
    """Return the operations of the teacher, and those of the anomaly map and the scores (Eq. 11).

    The map is of small differences between near equals, teacher and student. 8 bits leave nothing of it if it is
    computed in them, and lose three points of AUROC if the teacher is; the student bears them.
    """
    operations = model.get_ordered_ops()
    inputs = {
        _name(each): [_name(value.get_source_output().get_node()) for value in each.inputs()] for each in operations
    }
    levels = {inputs[_name(each)][0] for each in operations if each.get_type_name() in NORMS}
    names, levels_before, after_levels = list(inputs), dict[str, set[str]](), set[str]()
    for name in names:
        levels_before[name] = {
            level for before in inputs[name] for level in levels_before[before] | ({before} & levels)
        }
    # a student's level comes of all the teacher's, a teacher's of fewer
    teacher = {level for level in levels if len(levels_before[level]) < len(levels) // 2}
    for name in reversed(names):
        if name in teacher:
            teacher.update(inputs[name])
    norms = {_name(each) for each in operations if each.get_type_name() in NORMS}
    for name in names:
        if name in norms or after_levels.intersection(inputs[name]):
            after_levels.add(name)
    if not after_levels.intersection(map(_name, model.get_results())):
        msg = f"The exported model has none of {', '.join(NORMS)} before its scores: its anomaly map is not found."
        raise ValueError(msg)
    passive = {_name(each) for each in operations if each.get_type_name() in PASSIVE}
    return sorted((teacher | after_levels) - passive)


def _name(operation: "openvino.Node") -> str:
    return operation.get_friendly_name()


class _TrainingImages:
    """Training images as the exported model takes them, drawn evenly over the set, read when they are asked for."""

    def __init__(
        self, datamodule: AnomalibDataModule, trained: Any, size: tuple[int, int] | None, repeats: int
    ) -> None:
        self.dataset = copy.copy(datamodule.train_data)
        as_trained(trained, self.dataset)
        self.dataset.augmentations = None
        self.size, self.repeats = size, repeats
        count = min(CALIBRATION_IMAGES, len(self.dataset))
        self.indices = torch.linspace(0, len(self.dataset) - 1, count).round().long().tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        for index in self.indices:
            image = cast("Tensor", self.dataset[index].image)[None].float()
            if self.size is not None:
                image = F.interpolate(image, self.size, mode="bilinear", align_corners=False, antialias=True)
            yield image.repeat(self.repeats, 1, 1, 1).numpy()
