# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Small trainings in processes of their own, to be ended at a chosen moment: imported once, forked for each.

As a module it gives :class:`Nursery`; as a script it is the process that forks. A training ends itself by a signal, at
a moment ("the third global step") and some milliseconds later. It leaves ``final.pt``: weights, history, test scores.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

EPOCHS = 6


class Moment(NamedTuple):
    """When a training is to end: at the ``count``-th time (from 1) that it reaches ``place``, ``delay`` seconds on."""

    place: str
    count: int
    delay: float = 0.0


class Life(NamedTuple):
    """One process: how it ended (minus the signal, or the exit status), after how long, and what it printed."""

    status: int
    seconds: float
    output: str


class Nursery:
    """Starts trainings and waits for them.

    Args:
        data: Root of the data set.
        folder: Where results go, by name; the feature caches' folder is ``cache``.
    """

    def __init__(self, data: Path, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", __file__, str(data), str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, name: str, ckpt: Path | None = None, moment: Moment | None = None, **options: Any) -> None:
        """Start a training; ``options`` are ``signal`` (or "workers"), ``model`` and ``data``."""
        order = {"name": name, "ckpt": ckpt and str(ckpt), "moment": moment, **options}
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def wait(self) -> dict[str, Life]:
        """Wait until all that were started have ended."""
        print(json.dumps(None), file=self._process.stdin, flush=True)
        ended = json.loads(self._process.stdout.readline())
        outputs = {name: (self.folder / f"{name}.log").read_text(errors="replace") for name in ended}
        return {name: Life(status, seconds, outputs[name]) for name, (status, seconds) in ended.items()}

    def live(self, name: str, ckpt: Path | None = None, moment: Moment | None = None, **options: Any) -> Life:
        """Start a training and wait for it."""
        self.start(name, ckpt, moment, **options)
        return self.wait()[name]

    def checkpoint(self, prefix: str) -> Path | None:
        """Return the newest checkpoint of the trainings whose names begin so."""
        found = [path for folder in self.folder.glob(f"{prefix}*") for path in folder.rglob("*.ckpt")]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


# ---------------------------------------------------------------------------------------------- in the forked process


def at(moment: Moment, action: Callable[[], None]) -> None:
    """Call ``action`` when the moment comes: wraps what each place is."""
    import torch

    from anomalib_cdd import Cdd
    from anomalib_cdd.models.cdd import training_set
    from anomalib_cdd.models.cdd.features import FeatureCache
    from anomalib_cdd.models.cdd.training_set import TrainingSet

    seen = 0

    def reached() -> None:
        nonlocal seen
        seen += 1
        if seen == moment.count:
            threading.Timer(moment.delay, action).start() if moment.delay else action()

    def before(owner: Any, name: str, here: Callable[..., bool] = lambda *_: True) -> None:
        wrapped = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            if here(*args):
                reached()
            return wrapped(*args, **kwargs)

        setattr(owner, name, told)

    save = torch.save

    def half(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        if str(getattr(file, "name", "")).rpartition("/")[2].startswith(".model.ckpt"):
            whole = file.tell()
            file.truncate(whole // 2)
            reached()
            file.seek(0)
            save(checkpoint, file)

    if moment.place == "start":
        reached()
    elif moment.place in {"domain", "global", "confident"}:
        before(Cdd, "optimize", lambda model, optimizer, loss, stage: stage == moment.place)
    elif moment.place == "half a checkpoint":
        torch.save = half
    else:
        owner, name = {
            "cache": (FeatureCache, "write"),
            "allocation": (os, "posix_fallocate"),
            "recall": (TrainingSet, "recall"),
            "recall asks": (training_set, "confidence"),
            "targets": (TrainingSet, "targets"),
            "validation": (Cdd, "validation_step"),
            "checkpoint": (Cdd, "on_save_checkpoint"),
            "rename": (Path, "replace"),
            "end": (Cdd, "on_train_end"),
        }[moment.place]
        before(owner, name)


def end(signal: int | str) -> None:
    """Send this process a signal, or kill what loads its images."""
    if signal != "workers":
        os.kill(os.getpid(), signal)
        return
    workers = multiprocessing.active_children()
    print(f"killing {len(workers)} workers", flush=True)
    for worker in workers:
        worker.kill()


def train(data: str, folder: Path, order: dict[str, Any]) -> None:
    import torch
    from anomalib.engine import Engine
    from anomalib.pre_processing import PreProcessor
    from lightning.pytorch import seed_everything
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    from anomalib_cdd import Cdd, MVTecNoisy

    torch.set_num_threads(1)
    seed_everything(0)
    pre_processor = PreProcessor(Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)]))
    model = Cdd(
        **{
            "backbone": "test_resnet",
            "pre_trained": False,
            "student_width": 8,
            "visualizer": False,
            "audit": False,
            "domain_interval": 1,
            "max_confident": 0.5,  # beside confident patches: every stage and every question
            "pre_processor": pre_processor,
            "cache_memory_gb": 0,
            "cache_dir": str(folder / "cache"),
            **order.get("model", {}),
        }
    )
    datamodule = MVTecNoisy(
        **{
            "root": data,
            "noise_ratio": 0.25,
            "val_split_mode": "same_as_test",
            "train_batch_size": 4,
            "eval_batch_size": 8,
            "num_workers": 0,
            **order.get("data", {}),
        }
    )
    if order["moment"] is not None:
        at(Moment(*order["moment"]), lambda: end(order["signal"]))
    results = folder / order["name"]
    engine = Engine(
        max_epochs=EPOCHS,
        logger=False,
        accelerator="cpu",
        devices=1,
        default_root_dir=results,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(model, datamodule=datamodule, ckpt_path=order["ckpt"])
    model.eval()
    with torch.no_grad():
        images = torch.stack([pre_processor.transform(item.image) for item in datamodule.test_data])
        scores = model.model(images).pred_score
    final = {"weights": model.state_dict(), "history": model.training_history.state_dict(), "scores": scores}
    results.mkdir(parents=True, exist_ok=True)
    torch.save(final, results / "final.pt")


def serve(data: str, folder: Path) -> None:
    import torch
    from anomalib.engine import Engine  # noqa: F401  # once, before any fork

    import anomalib_cdd  # noqa: F401

    torch.set_num_threads(1)
    running: dict[int, tuple[str, float]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if order is not None:
            process = os.fork()
            if process:
                running[process] = (order["name"], time.monotonic())
                continue
            log = (folder / f"{order['name']}.log").open("wb")
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            # a test run that was started in the background ignores Ctrl-C, and so would its children
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = 3
            try:
                train(data, folder, order)
                status = 0
            except BaseException as error:  # noqa: BLE001  # a process ends here, however it does
                if isinstance(error, SystemExit):
                    status = error.code
                sys.excepthook(*sys.exc_info())
            finally:  # a second dead worker raises where the first one's error is told
                sys.stderr.flush()
                os._exit(status)
        ended = {}
        while running:
            process, status = os.wait()
            name, start = running.pop(process)
            ended[name] = (os.waitstatus_to_exitcode(status), time.monotonic() - start)
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
