# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Two sides in alternation, medians and their ratio."""

import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any


@dataclass
class Comparison:
    """Timings of two sides.

    Attributes:
        what: Ours over the rival, in words.
        ours: Of each round, in ``unit``.
        rival: Likewise; empty where there is none.
        aim: Largest ratio that is aimed at.
        unit: Of the timings.
        note: What else the reader has to know.
        images: How many images a timing is of, where that is the question.
    """

    what: str
    ours: list[float]
    rival: list[float] = field(default_factory=list)
    aim: float | None = None
    unit: str = "s"
    note: str = ""
    images: int | None = None

    @property
    def ratio(self) -> float | None:
        """Median of ours over that of the rival."""
        return median(self.ours) / median(self.rival) if self.rival else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Smallest and largest ratio of a round."""
        ratios = [ours / rival for ours, rival in zip(self.ours, self.rival, strict=False)]
        return (min(ratios), max(ratios)) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, medians and ratio included."""
        medians = {"median": median(self.ours), "median_rival": median(self.rival) if self.rival else None}
        return asdict(self) | medians | {"ratio": self.ratio, "spread": self.spread}


def alternate(ours: Callable[[], Any], rival: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Time two sides in turn, after a round of warm-up."""
    times = take_turns({"ours": ours, "rival": rival}, repeats)
    return times["ours"], times["rival"]


def take_turns(sides: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, list[float]]:
    """Time any number of sides in turn, after a round of warm-up."""
    rounds: dict[Any, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, side in sides.items():
            taken = clock(side)
            if number:
                rounds[name].append(taken)
    return rounds


def clock(work: Callable[[], Any]) -> float:
    """Return how many seconds some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def environment() -> dict[str, Any]:
    """Return what timings depend on."""
    import torch

    from anomalib_cdd.training.precision import computes_in_bf16

    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": computes_in_bf16(torch.device("cpu")),
        "torch": torch.__version__,
        "anomalib": version("anomalib"),
        "python": platform.python_version(),
        "revision": revision.stdout.strip(),
    }
