# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F811  # fixtures of test_grid are imported
"""Cells by workers: the same results as in one process, and no more lost by a kill than the cells in flight."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from light_cells import LightCell, cells_of_driver
from light_cells import run as run_light
from light_cells import work as light_work
from test_grid import PADIM, SMALL, Make, make, record_of, trained, with_args  # noqa: F401  # also fixtures

from anomalib_cdd.benchmark import run as grid
from anomalib_cdd.benchmark import workers
from anomalib_cdd.benchmark.driver import GridError
from anomalib_cdd.benchmark.resources import ask_of, refuse_too_much, room
from anomalib_cdd.cli import fuad
from anomalib_cdd.cli.entries import ConfigError

pytest.importorskip("ray")
CDD = {
    "class_path": "anomalib_cdd.Cdd",
    "init_args": {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "pre_processor": SMALL},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}
ON_CPU = {**with_args(PADIM, pre_processor=SMALL), "trainer": {"accelerator": "cpu"}}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As many threads in both: as if the tests had been called with it; workers that do not wait for other tests."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own is 15
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does is a stand-in, from a file beside this one."""
    here = Path(__file__).resolve()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here.parent, here.parents[2]))))
    monkeypatch.setattr(workers, "_work", light_work)


def lines_of(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]


def test_workers_leave_what_one_process_leaves(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kept, lines = {}, {}
    for name, argv in (("one", ()), ("two", ("--workers", "2"))):
        options = {"models": {"padim": ON_CPU, "cdd": CDD}, "checkpoints": True, "measure_every": 1}
        config = make(*argv, output=str(tmp_path / name), **options)
        assert fuad.run(config) == 0
        lines[name] = lines_of(capsys)
        kept[name] = {path.stem: path for path in (tmp_path / name / "cells").glob("*.json")}
    assert len(kept["one"]) == 4
    for key, path in kept["one"].items():
        one, two = (json.loads(each.read_text()) for each in (path, kept["two"][key]))
        assert [one[name] == two[name] for name in ("measures", "course", "config", "status")] == [True] * 4
        assert one["environment"] == two["environment"]
        with np.load(path.with_suffix(".npz")) as a, np.load(kept["two"][key].with_suffix(".npz")) as b:
            assert [name for name in a.files if a[name].tobytes() != b[name].tobytes()] == []
            assert a.files == b.files
    of_one, of_two = (pd.read_csv(tmp_path / name / "results.csv") for name in ("one", "two"))
    timed = ["fit_seconds", "inference_seconds", "wall_seconds"]
    pd.testing.assert_frame_equal(of_one.drop(columns=timed), of_two.drop(columns=timed), check_exact=True)
    assert [len(each) for each in lines.values()] == [4, 4]
    assert [line[:6] for line in lines["two"]] == [f"[{n}/4] " for n in (1, 2, 3, 4)]
    assert {line.split(":")[0][6:] for line in lines["two"]} == {line.split(":")[0][6:] for line in lines["one"]}
    runs = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name / "runs").rglob("*")) for name in lines
    ]
    assert runs[0] == runs[1]
    latest = next((tmp_path / "two" / "runs").rglob("latest"))
    assert (latest / "weights" / "lightning" / "model.ckpt").exists()
    assert (tmp_path / "two" / "log.txt").read_text().count("====") == 4


def test_a_worker_that_dies_is_tried_again_and_recorded_when_it_dies_thrice(
    tmp_path: Path, light: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    cells = [LightCell(tmp_path, model) for model in ("dies", "dies_once", "lives")]
    assert run_light(cells, tmp_path / "out", 2) == 1
    assert [len((tmp_path / f"{cell.key}.tried").read_text().splitlines()) for cell in cells] == [3, 2, 1]
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["status"].tolist() == ["failed", "done", "done"]
    assert results["error"][0].startswith("its worker died 3 times, at last of WorkerCrashedError: ")
    assert "its worker died 3 times" in (tmp_path / "out" / "report.md").read_text()
    screen = capsys.readouterr()
    lines = screen.out.splitlines()
    assert lines[1] == "2 workers of 1 thread each on 1 core: they wait for each other."
    assert [bool(re.match(r"\[\d/3\] \w+ seed 0: ", line)) for line in lines[2:5]] == [True] * 3
    assert len(lines) == 6
    assert screen.err == ""
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "dies_once seed 0: its worker died, attempt 1 of 3 (WorkerCrashedError" in log
    assert "printed by lives seed 0" in log


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_driver_loses_the_cells_in_flight_and_leaves_no_process(
    tmp_path: Path, light: None, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    cells, output, resumed = cells_of_driver(tmp_path), tmp_path / "out", []

    def resume(cell: LightCell, *args: Any) -> Any:
        resumed.append(cell.model)
        return record_of(cell, environment={"anomalib_cdd": "0", "commit": "0"}), None

    monkeypatch.setattr(grid, "run_cell", resume)
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("light_cells.py")), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            until(lambda: (output / "cells" / "quick0.json").exists() and (tmp_path / "waits0.tried").exists())
            with pytest.raises(GridError, match=f"{output} is being written by another run, process {driver.pid} on"):
                grid.run(cells, None, output)
        finally:
            driver.send_signal(sent)
    processes = {int(each) for path in tmp_path.glob("*.tried") for each in path.read_text().split()}
    until(lambda: not any(map(is_alive, processes)))
    assert grid.run(cells, None, output) == 0
    assert resumed == ["waits"]


def until(is_so: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_folder_that_another_driver_writes_is_refused_by_name(make: Make, trained: list[str]) -> None:
    config = make()
    (config.output / "cells").mkdir(parents=True)
    other = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    command = [sys.executable, "-c", other, str(config.output / ".driver")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with pytest.raises(ConfigError, match=f"{config.output} is being written by another run"):
            fuad.run(config)
        process.communicate("\n")
    assert trained == []
    assert fuad.run(config) == 0


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--workers", "0"), "workers is 0"),
        (("--workers", "-1"), "workers is -1"),
        (("--workers", "2", "--ray_address", "auto"), "Give one"),
    ],
)
def test_wrong_numbers_are_refused(make: Make, trained: list[str], argv: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        fuad.run(make(*argv))


def test_without_ray_the_extra_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "anomalib-cdd[distributed]"')):
        fuad.run(make("--workers", "2"))


def test_an_address_that_nobody_answers_at_is_refused_in_seconds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers.ANSWER_SECONDS == 10
    monkeypatch.setattr(workers, "ANSWER_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"No Ray cluster answers at {address} \(no answer in 1 s\)") as caught:
            fuad.run(make("--ray_address", address))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_where_none_is_is_refused(make: Make) -> None:
    padim = {**with_args(PADIM, pre_processor=SMALL), "trainer": {"accelerator": "gpu"}}
    with pytest.raises(ConfigError, match=r"models\.padim asks for a GPU, and there is none on this machine"):
        fuad.run(make("--workers", "1", models={"padim": padim}))


EIGHT_GPUS, BARE = {"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0}


@pytest.mark.parametrize(
    ("trainer", "machines", "cores", "asked", "at_once"),
    [
        ({}, [EIGHT_GPUS], None, (8, 1), 8),
        ({"accelerator": "gpu"}, [EIGHT_GPUS, BARE], None, (8, 1), 8),
        ({"accelerator": "cpu"}, [BARE] * 4, None, (16, 0), 4),
        ({"accelerator": "cpu"}, [EIGHT_GPUS, BARE], None, (16, 0), 5),
        ({}, [BARE], 4, (4, 0), 4),
        ({"accelerator": "gpu"}, [BARE], None, (1, 1), 0),
    ],
)
def test_a_task_asks_for_the_gpu_or_the_cores_that_it_needs(
    trainer: dict, machines: list, cores: int | None, asked: tuple[int, int], at_once: int
) -> None:
    cell = LightCell(Path(), "any", config={"trainer": trainer})
    ask = ask_of(cell, machines, cores)
    assert ask == asked
    assert room(machines, ask) == at_once
    if at_once == 0:
        with pytest.raises(GridError, match=r"models\.any asks for a GPU, and there is none on this machine"):
            refuse_too_much(cell, ask, machines, None)


@pytest.mark.slow
def test_a_cluster_runs_cells_but_not_with_another_version_of_the_package(
    make: Make,
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false", "--block"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as cluster:
        address = f"127.0.0.1:{port}"
        try:
            until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            config = make("--ray_address", address, models={"padim": ON_CPU})
            until(lambda: fuad.run(config) == 0)
            cells = fuad.cells_of(config)
            others = [cell.__class__(**{**cell.__dict__, "code": "another"}) for cell in cells]
            assert grid.run(others, fuad.build_cell, config.output, ray_address=address) == 2
        finally:
            cluster.terminate()
    results = pd.read_csv(config.output / "results.csv")
    assert results["error"].str.contains("install the same version on every machine").all()
