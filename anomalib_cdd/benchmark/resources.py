# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What a cell asks of a machine: a GPU, where its trainer takes one, and the cores that its threads take.

As many threads as one process would have give the same bits as one process: ``OMP_NUM_THREADS`` says how many for both.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .driver import GridError
from .plan import Cell

Machine = Mapping[str, float]
"""Ray's resources of a machine: ``CPU``, ``GPU``, ..."""


class Ask(NamedTuple):
    """What a task asks for; both are whole numbers of one machine."""

    cores: int
    gpus: int


def crowd(workers: int) -> str | None:
    """Say so if workers on this machine have more threads than it has cores."""
    each, cores = cores_each(workers), _cores()
    if workers * each <= cores:
        return None
    threads, has = "1 thread" if each == 1 else f"{each} threads", "1 core" if cores == 1 else f"{cores} cores"
    return f"{workers} workers of {threads} each on {has}: they wait for each other."


def threads_set() -> int | None:
    """Return how many threads the user wants a process to have, as one process would take them; or ``None``."""
    return torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else None


def cores_each(workers: int) -> int:
    """Return how many cores each worker on this machine has."""
    return threads_set() or max(1, _cores() // workers)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def ask_of(cell: Cell, machines: Sequence[Machine], cores: int | None) -> Ask:
    """Return what a cell asks for; cores that nobody has set are a GPU's share of its machine, or a whole machine."""
    trainer = cell.config["trainer"]
    accelerator, gpus = str(trainer.get("accelerator") or "auto"), 0
    has_gpus = any(machine.get("GPU", 0) for machine in machines)
    if accelerator in {"gpu", "cuda"} or (accelerator == "auto" and has_gpus):
        gpus = 1
    shares = [
        machine["CPU"] * (gpus / machine["GPU"] if gpus else 1)
        for machine in machines
        if machine.get("CPU") and (not gpus or machine.get("GPU", 0) >= gpus)
    ]
    return Ask(cores or max(1, int(min(shares, default=1))), gpus)


def room(machines: Sequence[Machine], ask: Ask) -> int:
    """Return how many such tasks run at a time."""
    return sum(
        int(min(machine.get("CPU", 0) // ask.cores, machine.get("GPU", 0) // ask.gpus if ask.gpus else sys.maxsize))
        for machine in machines
    )


def refuse_too_much(cell: Cell, ask: Ask, machines: Sequence[Machine], address: str | None) -> None:
    """Refuse a cell that would wait for ever.

    Args:
        cell: The cell.
        ask: What it asks for.
        machines: That there are.
        address: Of their cluster, if it is one.

    Raises:
        GridError: If no machine has what it asks for.
    """
    if room(machines, ask):
        return
    where = f"in the cluster at {address}" if address else "on this machine"
    if ask.gpus and not any(machine.get("GPU", 0) for machine in machines):
        msg = f"models.{cell.model} asks for a GPU, and there is none {where}: see its trainer's accelerator."
    else:
        msg = f"models.{cell.model} asks for {ask.cores} cores and {ask.gpus} GPUs of a machine: there is none {where}."
    raise GridError(msg)
