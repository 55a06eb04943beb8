# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""How much domain students know more than the student that they were forked from.

``python -m benchmarks.domain_students --config configs/fuad.yaml --data mono_cells --model cdd`` trains the cell
of a grid at its first noise ratio and prints for each epoch the distance to the teacher (Eq. 2, mean over the training
images) of the previous student and of the domain students, whose mean it is: as they give pseudo-normal targets, and
with BatchNorm's statistics taken anew from their own domain.
"""

import argparse
import copy
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from anomalib.engine import Engine
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.optim.swa_utils import update_bn

from anomalib_cdd.benchmark import grid
from anomalib_cdd.cli.entries import build
from anomalib_cdd.models.cdd.domains import batches
from anomalib_cdd.models.cdd.loss import distance
from anomalib_cdd.models.cdd.training_set import TrainingSet
from anomalib_cdd.teachers.students import Student

Targets = Callable[..., Any]


@torch.no_grad()
def distance_to_teacher(data: TrainingSet, student: Student) -> float:
    """Return the mean over all samples of Eq. 2."""
    parts = batches(torch.arange(len(data)), data.batch_size)
    each = [distance(teacher, student(teacher)).item() for teacher in data.teacher(parts)]
    return sum(value * len(part) for value, part in zip(each, parts, strict=True)) / len(data)


def refreshed(data: TrainingSet, student: Student, domain: Tensor) -> Student:
    """Return a copy whose statistics are those of its weights on its domain."""
    student = copy.deepcopy(student)
    update_bn(([teacher] for teacher in data.teacher(batches(domain, data.batch_size))), student)
    return student.eval()


def watched(targets: Targets) -> Targets:
    """Wrap ``TrainingSet.targets``, which sees every epoch's domain students once they are trained."""
    epochs = itertools.count()

    def watch(data: TrainingSet, students: list[Student], visits: Tensor, selection: Any) -> Any:
        owners = [visits[(visits[:, 1] == k) | (visits[:, 1] < 0), 0] for k in range(len(students))]
        known = distance_to_teacher(data, data._asked)
        used = [distance_to_teacher(data, student) for student in students]
        anew = [
            distance_to_teacher(data, refreshed(data, student, domain))
            for student, domain in zip(students, owners, strict=True)
        ]
        count = len(students)
        print(f"| {next(epochs)} | {known:.4f} | {sum(used) / count:.4f} | {sum(anew) / count:.4f} |", flush=True)
        return targets(data, students, visits, selection)

    return watch


def main(arguments: list[str] | None = None) -> int:
    """Train one cell and print a row an epoch."""
    parser = argparse.ArgumentParser("python -m benchmarks.domain_students", description=__doc__)
    parser.add_argument("--config", required=True, help="a configuration of `fuad`")
    parser.add_argument("--data", required=True, help="name of a data set in it")
    parser.add_argument("--model", required=True, help="name of a Cdd in it")
    parser.add_argument("--data_root", help="as for `fuad`")
    options = parser.parse_args(arguments)
    cells = grid.plan(grid.get_parser().parse_args(["--config", options.config]))
    cell = next((cell for cell in cells if (cell.data, cell.model) == (options.data, options.model)), None)
    if cell is None:
        parser.error(f"{options.config} has no {options.model} on {options.data}")
    seed_everything(cell.seed)
    filled = grid._fill_data_root(cell.config, options.data_root, cell.data)
    filled["model"]["init_args"] |= {"audit": False, "post_processor": False}
    components = build(**filled)
    trainer = grid.QUIET | components.trainer | {"precision": grid._precision(cell)}
    print("| epoch | previous student | domain students | with statistics of their own |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, patch.object(TrainingSet, "targets", watched(TrainingSet.targets)):
        engine = Engine(default_root_dir=Path(folder), **trainer)
        engine.fit(components.model, datamodule=components.datamodule)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
