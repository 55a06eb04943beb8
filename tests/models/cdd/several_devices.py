# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A script of its own, as Lightning starts one process a device by running the script again.

Trains the cases that ``test_several_devices.py`` compares: ``several_devices.py DEVICES DATA OUTPUT CASES``, the
cases in JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_cdd import Cdd, MVTecNoisy


class DieInSecondEpoch(Callback):
    def __init__(self, rank: int, output: Path) -> None:
        self.rank, self.output = rank, output

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        (self.output / f"pid{trainer.global_rank}").write_text(str(os.getpid()))
        if trainer.current_epoch == 1 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def without_batch_statistics(module: nn.Module) -> None:
    """Swap each BatchNorm for a norm of single images: a share of a batch has other statistics than the batch."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        without_batch_statistics(child)


def train(devices: int, root: Path, output: Path, case: dict[str, Any]) -> None:
    seed_everything(0, verbose=False)
    steps = [Resize((64, 64), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)]
    options = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "visualizer": False, "audit": False}
    options |= {"relative_noise": True, "pre_processor": PreProcessor(Compose(steps))}
    model = Cdd(**options | case.get("options", {}))
    if case.get("no_batch_norm"):
        without_batch_statistics(model.model.student)
    data = MVTecNoisy(
        root=root, category="bottle", noise_ratio=0.25, val_split_mode="none", train_batch_size=4, eval_batch_size=4,
        num_workers=0,
    )  # fmt: skip
    callbacks = [DieInSecondEpoch(case["dies"], output)] if "dies" in case else []
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    engine = Engine(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=case.get("epochs", 2),
        default_root_dir=output / case["name"] / case.get("folder_of_rank", {}).get(os.environ.get("LOCAL_RANK"), ""),
        callbacks=callbacks,
        precision=case.get("precision", "32-true"),
        **quiet,
    )
    engine.fit(model, datamodule=data, ckpt_path=case.get("ckpt_path"))
    history = model.training_history
    assert history is not None
    end = {"student": model.model.student.state_dict(), "history": history.state_dict()}
    end["root"] = str(engine.trainer.default_root_dir)
    torch.save(end, output / f"{case['name']}.rank{engine.trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in json.loads(sys.argv[4]):
        train(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), each)
