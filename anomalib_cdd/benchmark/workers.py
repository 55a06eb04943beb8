# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cells as Ray tasks, on this machine or on a cluster. A task returns what its cell leaves; the driver alone writes.

A task asks for the GPUs of its cell's trainer and for the cores that its threads take. A worker that dies is tried
again; a cell whose worker dies each time is recorded as failed. Ray is the extra ``distributed``.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from .cell import Build, Components, lost_record, run_cell
from .driver import GridError, locked
from .plan import Cell, Entry
from .records import Record
from .resources import Ask, ask_of, cores_each, refuse_too_much, room, threads_set
from .revision import fingerprint
from .scores import Arrays

ATTEMPTS = 3
ANSWER_SECONDS = 10
SILENT = {"log_to_driver": False, "logging_level": "ERROR"}
CONNECT = """
import os, sys, ray
print(flush=True)
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
os._exit(0)
"""


class Work(NamedTuple):
    """What a worker returns: the cell's record and arrays, what it printed, and its packed run if that is kept."""

    record: Record
    arrays: Arrays | None = None
    printed: str = ""
    run: bytes | None = None


class Pool(NamedTuple):
    """Ray, started or connected.

    Attributes:
        ray: The module.
        asks: What each cell asks for.
        at_once: How many cells run at a time.
    """

    ray: Any
    asks: dict[str, Ask]
    at_once: int

    def work(self, jobs: Mapping[int, tuple[Cell, bool]], build: Build, keep_runs: bool) -> Iterator[tuple[int, Work]]:
        """Run cells and yield what they leave, in any order.

        Args:
            jobs: Each cell, and whether it keeps examples.
            build: Makes what a cell is made of.
            keep_runs: Whether to return runs with their checkpoints.
        """
        ray, task = self.ray, self.ray.remote(max_retries=0)(_work)

        def submit(i: int) -> Any:
            cell, examples = jobs[i]
            cores, gpus = self.asks[cell.key]
            return task.options(num_cpus=cores, num_gpus=gpus).remote(cell, build, cores, examples, keep_runs)

        under_way = {submit(i): (i, 1) for i in jobs}
        while under_way:
            [ended], _ = ray.wait(list(under_way), num_returns=1)
            i, attempt = under_way.pop(ended)
            cell = jobs[i][0]
            try:
                work = ray.get(ended)
            except ray.exceptions.RayTaskError as error:  # not of the cell itself: its errors are in its record
                work = Work(lost_record(cell, f"{type(error.cause).__name__}: {error.cause}", str(error)))
            except ray.exceptions.RayError as error:
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                if attempt < ATTEMPTS:
                    print(f"==== {cell}: its worker died, attempt {attempt} of {ATTEMPTS} ({reason})", flush=True)
                    under_way[submit(i)] = (i, attempt + 1)
                    continue
                work = Work(lost_record(cell, f"its worker died {ATTEMPTS} times, at last of {reason}", str(error)))
            yield i, work


@contextmanager
def pool(cells: Sequence[Cell], workers: int | None, address: str | None) -> Iterator[Pool]:
    """Start Ray on this machine, or connect to a cluster; all of it ends with the block.

    Args:
        cells: What will run.
        workers: How many at a time on this machine.
        address: Of the cluster, in place of that: it runs as many as it has room for.

    Raises:
        GridError: If nobody answers at the address, or no machine has what a cell asks for.
        ModuleNotFoundError: If Ray is not installed.
    """
    ray = _ray()
    if address is None:
        workers = workers or 1
        ray.init(address="local", num_cpus=workers * cores_each(workers), include_dashboard=False, **SILENT)
    else:
        _refuse_silence(address)
        ray.init(address=address, **SILENT)
    try:
        cores = cores_each(workers) if workers else threads_set()
        machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
        asks = {cell.key: ask_of(cell, machines, cores) for cell in cells}
        for cell in cells:
            refuse_too_much(cell, asks[cell.key], machines, address)
        yield Pool(ray, asks, min(room(machines, ask) for ask in asks.values()))
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = 'Workers need Ray: pip install "anomalib-cdd[distributed]"'
        raise ModuleNotFoundError(msg) from error
    return ray


def _refuse_silence(address: str) -> None:
    """Connect from a process of its own first: where nobody answers, Ray tries for minutes and ends its process."""
    command = [sys.executable, "-c", CONNECT, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout  # noqa: S101
        process.stdout.readline()  # Ray is imported: from here the seconds count
        try:
            _, printed = process.communicate(timeout=ANSWER_SECONDS)
            reason = (printed.strip().splitlines() or [""])[-1] if process.returncode else None
        except subprocess.TimeoutExpired:
            reason = f"no answer in {ANSWER_SECONDS} s"
        finally:
            process.kill()
    if reason is not None:
        msg = f"No Ray cluster answers at {address} ({reason}). How to start one: docs/comparison.md."
        raise GridError(msg)


def _work(cell: Cell, build: Build, threads: int, examples: bool, keep_run: bool) -> Work:
    """Run a cell in a worker, with as many threads as it has cores."""
    code = fingerprint(cell.config["model"]["class_path"])
    if code != cell.code:
        msg = f"the package on {platform.node()} is not the driver's: install the same version on every machine"
        raise RuntimeError(msg)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, StringIO() as file, redirect_stdout(file), redirect_stderr(file):
        runs = Path(folder) / "runs"
        record, arrays = run_cell(cell, partial(_build_in_turn, build), runs if keep_run else None, examples)
        return Work(record, arrays, file.getvalue(), _packed(runs) if runs.exists() else None)


def _build_in_turn(build: Build, config: Entry) -> Components:
    """Build a cell, and let one worker of a machine at a time fetch data that is not there yet."""
    components = build(config)
    path = Path(tempfile.gettempdir()) / f"anomalib_cdd_data_{getattr(os, 'getuid', int)()}.lock"
    with isolate_rng(), path.open("a", encoding="utf-8") as file:
        locked(file, wait=True)
        components[0].prepare_data()
    return components


def _packed(runs: Path) -> bytes:
    for link in [path for path in runs.rglob("*") if path.is_symlink()]:  # anomalib's are to this machine's folders
        target = os.path.relpath(link.resolve(), link.parent.resolve())
        link.unlink()
        link.symlink_to(target)
    return Path(shutil.make_archive(f"{runs}_packed", "tar", runs)).read_bytes()


def unpack(run: bytes, runs: Path) -> None:
    """Put a run that a worker has returned into the folder of runs."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(run)
        file.flush()
        shutil.unpack_archive(file.name, runs)
