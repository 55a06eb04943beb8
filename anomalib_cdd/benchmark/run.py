# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Running a grid: its cells in this process, one after another, or by workers; here what they leave is written.

What is finished never runs again, what failed is recorded and tried again next time. ``results.csv`` and the report
are written anew after each cell, from the cells of the present grid; what a cell prints goes to ``log.txt``.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from anomalib_cdd.training.files import write_text

from . import records as kept
from . import scores
from .cell import Build, run_cell
from .driver import sole_driver
from .figures import draw
from .pages import to_html, to_markdown
from .plan import Cell
from .records import Record, is_done
from .report import make_report
from .resources import crowd
from .workers import Pool, pool, unpack

LOGGERS = ("anomalib", "anomalib_cdd", "lightning.pytorch", "lightning.fabric", "lightning_fabric")

Jobs = Mapping[int, tuple[Cell, bool]]
"""Cells by their place in the grid, and whether each keeps the heat maps of a few test images."""
Ended = tuple[int, Record, scores.Arrays | None]
"""The place of a cell that has run, and what it leaves."""
Begin = Callable[[Cell], None]


class Where(NamedTuple):
    """Where cells run: here, by workers of this machine or by a cluster; ``runs`` keeps their checkpoints, if any.

    ``data_root`` is the folder of the images, as records name it.
    """

    runs: Path | None
    workers: int | None
    ray_address: str | None
    data_root: str | None


def run(
    cells: Sequence[Cell],
    build: Build,
    output: Path,
    *,
    keep_checkpoints: bool = False,
    workers: int | None = None,
    ray_address: str | None = None,
    data_root: str | None = None,
) -> int:
    """Run the cells that are not finished yet and write the results.

    Args:
        cells: Of the grid.
        build: Makes what a cell is made of.
        output: Folder of the results.
        keep_checkpoints: Whether to keep each cell's run with its checkpoint, in ``runs``.
        workers: How many cells to run at a time on this machine; ``None`` runs them here, one after another.
        ray_address: Of a Ray cluster that runs them.
        data_root: Folder of the images, if they have one in common. Cells that another one finished count as finished,
            with a warning.

    Returns:
        How many cells failed.

    Raises:
        GridError: If another process is writing the folder, or the workers cannot be had.
    """
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    with sole_driver(output):
        records = [kept.read_record(output, cell) for cell in cells]
        waiting = [i for i, record in enumerate(records) if not is_done(record)]
        print(f"{len(cells)} cells, {len(cells) - len(waiting)} finished before; results in {output.resolve()}")
        if workers and waiting and (warning := crowd(workers)):
            print(warning)
        root = None if data_root is None else str(Path(data_root).resolve())
        done = [record for record in records if record is not None and is_done(record)]
        roots = {str(record["data_root"]) for record in done if record.get("data_root")}
        for other in sorted(roots - {root}) if root is not None else ():
            print(
                f"Finished cells are of the images in {other}, and count for those in {root} too: "
                "choose another --output if these are not the same images."
            )
        where = Where(output / "runs" if keep_checkpoints else None, workers, ray_address, root)
        _run_waiting(cells, build, output, records, waiting, where)
        _write_results(output, cells, records, figures=True)
    failed = sum(record is not None and record["status"] == "failed" for record in records)
    print(f"{len(cells) - failed} finished, {failed} failed: {(output / 'report.html').resolve()}")
    return failed


def _run_waiting(
    cells: Sequence[Cell],
    build: Build,
    output: Path,
    records: list[Record | None],
    waiting: list[int],
    where: Where,
) -> None:
    """Run cells and write what each leaves as it ends; ``records`` and ``waiting`` are kept up to date."""
    lowest = min(cell.seed for cell in cells)
    jobs = {i: (cells[i], cells[i].seed == lowest) for i in waiting}
    # the screen has one line per cell, whatever else is printed meanwhile
    say, numbers = partial(print, flush=True, file=sys.stdout), count(len(cells) - len(waiting) + 1)

    def begin(cell: Cell) -> None:
        say(f"[{next(numbers)}/{len(cells)}] {cell}: ", end="")

    with _output_to_file(output / "log.txt"), _running(jobs, build, where, begin) as (at_once, ended):
        for i, record, arrays in ended:
            if arrays is not None:
                scores.save(kept.record_path(output, cells[i]).with_suffix(".npz"), arrays)
            kept.save_record(output, cells[i], record | {"data_root": where.data_root})
            records[i] = record
            waiting.remove(i)
            _write_results(output, cells, records)
            at_a_time = max(1, min(at_once, len(waiting)))
            say(f"{_outcome(record)}; {_duration(_seconds_left(cells, records, waiting) / at_a_time)} left")


@contextmanager
def _running(jobs: Jobs, build: Build, where: Where, begin: Begin) -> Iterator[tuple[int, Iterator[Ended]]]:
    """Yield how many cells run at a time, and what each leaves as it ends; ``begin`` begins its line on the screen."""
    if not jobs or not (where.workers or where.ray_address):
        yield 1, _in_turn(jobs, build, where.runs, begin)
        return
    with pool([cell for cell, _ in jobs.values()], where.workers, where.ray_address) as found:
        yield found.at_once, _by_workers(found, jobs, build, where.runs, begin)


def _in_turn(jobs: Jobs, build: Build, runs: Path | None, begin: Begin) -> Iterator[Ended]:
    for i, (cell, examples) in jobs.items():
        begin(cell)
        print(f"==== {cell}")
        yield i, *run_cell(cell, build, runs, examples)


def _by_workers(found: Pool, jobs: Jobs, build: Build, runs: Path | None, begin: Begin) -> Iterator[Ended]:
    for i, work in found.work(jobs, build, runs is not None):
        cell, _ = jobs[i]
        print(f"==== {cell}\n{work.printed}")
        if runs is not None and work.run is not None:
            unpack(work.run, runs)
        begin(cell)
        yield i, work.record, work.arrays


@contextmanager
def _output_to_file(path: Path) -> Iterator[None]:
    """Append what is printed, progress bars and warnings included, to a file."""
    handlers = [handler for name in ("", *LOGGERS) for handler in logging.getLogger(name).handlers]
    streams = (sys.stdout, sys.stderr)
    # a handler keeps the stream that it was made with
    consoles = [each for each in handlers if isinstance(each, logging.StreamHandler) and each.stream in streams]
    with path.open("a", buffering=1, encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        before = [console.setStream(file) for console in consoles]
        try:
            yield
        finally:
            for console, stream in zip(consoles, before, strict=True):
                console.setStream(stream)


def _write_results(
    output: Path, cells: Sequence[Cell], records: Sequence[Record | None], figures: bool = False
) -> None:
    """Write what there is; the figures take seconds and are drawn once, when the run ends."""
    results, curves = kept.results_of(cells, records), kept.curves_of(cells, records)
    kept.write_tables(output, results, curves)
    report = make_report(results, len(cells), draw(results, curves, output) if figures else None)
    write_text(output / "report.md", to_markdown(report, output))
    write_text(output / "report.html", to_html(report))


def _seconds_left(cells: Sequence[Cell], records: Sequence[Record | None], todo: Sequence[int]) -> float:
    """Sum up what each cell to come took before on the same data and model, or else the mean of all cells."""
    known = [
        (cell, record["wall_seconds"])
        for cell, record in zip(cells, records, strict=True)
        if record is not None and is_done(record)
    ]
    if not known:
        return math.nan if todo else 0.0

    def estimate(cell: Cell) -> float:
        same = [seconds for other, seconds in known if (other.data, other.model) == (cell.data, cell.model)]
        taken = same or [seconds for _, seconds in known]
        return sum(taken) / len(taken)

    return sum(estimate(cells[i]) for i in todo)


def _outcome(record: Record) -> str:
    if record["status"] == "failed":
        return f"FAILED, {record['error'].splitlines()[0][:200]}"
    measures = {name: record["measures"].get(name) for name in ("image_AUROC", "image_AUROC_overlap", "noise_AP")}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in measures.items() if value is not None)
    return f"{shown or 'nothing to measure'}, {_duration(record['wall_seconds'])}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
