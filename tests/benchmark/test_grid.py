# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The grid runs each cell once, survives kills and failures, and names what is wrong before anything runs."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch import nn

import anomalib_cdd
from anomalib_cdd.benchmark import cell as one_cell
from anomalib_cdd.benchmark import run as grid
from anomalib_cdd.benchmark.plan import Cell
from anomalib_cdd.benchmark.records import write_tables
from anomalib_cdd.cli import fuad
from anomalib_cdd.cli.entries import ConfigError
from anomalib_cdd.teachers.patches import nearest_distances

CONFIGS = Path(__file__).parents[2] / "configs"
PADIM = {
    "class_path": "anomalib.models.Padim",
    "init_args": {"backbone": "resnet18", "layers": ["layer1"], "n_features": 4, "pre_trained": False},
}
TILES = {
    "class_path": "anomalib_cdd.data.MVTecNoisy",
    "init_args": {"root": "${data_root}", "num_workers": 0, "train_batch_size": 4, "max_normal": 6},
}
SMALL = {
    "class_path": "anomalib.pre_processing.PreProcessor",
    "init_args": {
        "transform": {
            "class_path": "torchvision.transforms.v2.Compose",
            "init_args": {
                "transforms": [{"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}}]
            },
        }
    },
}

Make = Callable[..., Namespace]


def with_args(entry: dict[str, Any], **init_args: Any) -> dict[str, Any]:
    return {**entry, "init_args": {**entry["init_args"], **init_args}}


@pytest.fixture
def make(tmp_path: Path, mvtec_root: Path) -> Make:
    """Parse a grid of one tiny model, changed by the arguments, as the command line does."""

    def _make(*argv: str, **changes: Any) -> Namespace:
        config = {
            "output": str(tmp_path / "out"),
            "seeds": [0, 1],
            "noise_ratios": [0.5],
            "data": {"tiles": TILES},
            "models": {"padim": with_args(PADIM, pre_processor=SMALL)},
        }
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(config | changes))
        return fuad.get_parser().parse_args(["--config", str(path), "--data_root", str(mvtec_root), *argv])

    return _make


def record_of(cell: Cell, **fields: Any) -> dict[str, Any]:
    """What a cell that took no time leaves."""
    measures = {"image_AUROC": 0.5 + 0.1 * cell.seed, "image_AUROC_overlap": None}
    empty = {"course": [], "fit_seconds": 1.0, "wall_seconds": 1.0, "environment": {"precision": "32-true"}}
    return {"status": "done", "measures": measures, "key": cell.key, "config": cell.config} | empty | fields


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that were trained, in order; training itself is a stand-in."""
    names: list[str] = []

    def train(cell: Cell, *args: Any) -> Any:
        names.append(str(cell))
        return record_of(cell), {"test_scores": np.zeros(2)}

    monkeypatch.setattr(grid, "run_cell", train)
    return names


def test_a_grid_ends_in_measures_of_every_cell(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = make()
    assert fuad.run(config) == 0
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["seed"].tolist() == [0, 1]
    assert results["n_train"].tolist() == [9, 9]
    assert results["n_injected"].tolist() == [3, 3]
    measures = results[["image_AUROC", "image_AUROC_overlap", "pixel_AUROC", "AUPRO", "PRO", "noise_AP"]].to_numpy()
    assert ((measures >= 0) & (measures <= 1)).all()
    assert (results["wall_seconds"] > results["fit_seconds"]).all()
    assert results["inference_seconds"].between(1e-5, 1).all()
    written = json.loads(results["config"][1])
    assert written["data"]["init_args"]["noise_seed"] == 1
    assert written["data"]["init_args"]["val_split_mode"] == "none"
    assert written["model"]["init_args"]["backbone"] == "resnet18"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("[1/2] tiles noise 0.5 padim seed 0: image_AUROC")
    assert lines[1].endswith("left")
    assert not list((tmp_path / "out").rglob("*.ckpt"))
    assert set(results["anomalib_cdd"]) == {anomalib_cdd.__version__}
    assert results["commit"].notna().all()
    assert set(results["out_of_sample"]) == {0.0}
    assert results["false_alarm_rate"].eq(0.05).all()


def test_the_same_model_with_and_without_cleaning(make: Make, tmp_path: Path) -> None:
    padim = with_args(PADIM, pre_processor=SMALL)
    clean = {"share": 0.25, "backbone": "resnet18", "pre_trained": False, "image_size": [32, 32]}
    config = make(models={"padim": padim, "cleaned": {**padim, "clean": clean}}, seeds=[0])
    assert fuad.run(config) == 0
    results = pd.read_csv(tmp_path / "out" / "results.csv").set_index("model")
    results = results.loc[["padim", "cleaned"]]
    assert results["n_train"].tolist() == [9, 7]
    assert results["n_injected"].tolist() == [3, 3]
    assert np.isnan(results.loc["padim", "kept_normals"])
    left, kept = results.loc["cleaned", "noise_left"], 6 * results.loc["cleaned", "kept_normals"]
    assert left + kept == pytest.approx(7)
    assert results["out_of_sample"].tolist() == [0, 1]  # the cleaning's ranking
    config = json.loads(results.loc["cleaned", "config"])
    assert config["data"]["init_args"]["clean"]["share"] == 0.25
    assert json.loads(results.loc["padim", "config"])["data"]["init_args"]["clean"] is None


def test_the_seconds_of_a_fit_are_with_those_of_its_cleaning_be_it_done_now_or_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def compare(*args: Any) -> Any:
        nonlocal now
        now += 100
        return nearest_distances(*args)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr("anomalib_cdd.cleaning.scorer.nearest_distances", compare)
    clean = {"share": 0.25, "backbone": "resnet18", "pre_trained": False, "image_size": [32, 32]}
    small = with_args(PADIM, pre_processor=SMALL)
    models = {"plain": small, "first": {**small, "clean": clean}}
    models["second"] = {**with_args(small, n_features=5), "clean": clean}
    assert fuad.run(make(models=models, seeds=[0])) == 0
    results = pd.read_csv(tmp_path / "out" / "results.csv").set_index("model")
    assert results["fit_seconds"].to_dict() == {"plain": 0, "first": 100, "second": 100}


@pytest.mark.parametrize(("is_fast", "taken"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bf16_is_taken_where_it_is_fast_and_the_results_say_which(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_fast: bool, taken: str
) -> None:
    monkeypatch.setattr(one_cell, "computes_in_bf16", lambda device: is_fast)
    seen = []
    monkeypatch.setattr(one_cell, "Engine", lambda **trainer: seen.append(trainer["precision"]) or fail())
    padim = {**with_args(PADIM, pre_processor=SMALL), "trainer": {"precision": "bf16-mixed"}}
    asked = make(seeds=[0], models={"padim": padim})
    assert fuad.run(asked) == 1
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert seen == results["precision"].tolist() == [taken]
    assert json.loads(results["config"][0])["trainer"] == {"precision": "bf16-mixed"}


def test_device_and_precision_are_of_the_trainer_and_not_of_the_machine(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(one_cell, "computes_in_bf16", lambda device: device.type == "cuda")
    monkeypatch.setattr(one_cell, "Engine", lambda **trainer: fail())
    padim = with_args(PADIM, pre_processor=SMALL)
    models = {name: {**padim, "trainer": {"precision": "bf16-mixed", "accelerator": name}} for name in ("cpu", "auto")}
    assert fuad.run(make(seeds=[0], models=models)) == 2
    results = pd.read_csv(tmp_path / "out" / "results.csv").set_index("model")
    assert results["device"].to_dict() == {"cpu": "cpu", "auto": "cuda"}
    assert results["precision"].to_dict() == {"cpu": "32-true", "auto": "bf16-mixed"}


def test_the_seconds_of_inference_are_those_of_the_quickest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = 0.0, iter([1.0, *[8.0] * 6, *[4.0] * 99])  # a warm-up and another process before

    class Model(nn.Module):
        device = torch.device("cpu")

        def forward(self, images: torch.Tensor) -> None:
            nonlocal now
            now += next(taken)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    data = SimpleNamespace(test_dataloader=lambda: [SimpleNamespace(image=torch.zeros(2, 3, 8, 8))])
    assert one_cell.inference_seconds(Model(), data, torch.device("cpu")) == 2


def fail() -> None:
    msg = "no training"
    raise RuntimeError(msg)


def test_what_a_cell_logs_is_in_the_file_and_not_between_the_lines_of_progress(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def warn(**trainer: Any) -> None:
        logging.getLogger("anomalib").warning("few steps")
        fail()

    monkeypatch.setattr(one_cell, "Engine", warn)
    console = logging.StreamHandler()  # keeps the stream that it is made with, as anomalib's does
    logging.getLogger().addHandler(console)
    try:
        fuad.run(make(seeds=[0]))
        assert "few steps" in (tmp_path / "out" / "log.txt").read_text()
        logging.getLogger("anomalib").warning("afterwards")
    finally:
        logging.getLogger().removeHandler(console)
    err = capsys.readouterr().err
    assert "few steps" not in err
    assert "afterwards" in err


def test_finished_cells_are_not_run_again(make: Make, trained: list[str]) -> None:
    fuad.run(make())
    assert len(trained) == 2
    fuad.run(make())
    assert len(trained) == 2
    fuad.run(make(seeds=[0, 1, 2]))
    assert trained[2:] == ["tiles noise 0.5 padim seed 2"]
    fuad.run(make(models={"renamed": with_args(PADIM, pre_processor=SMALL)}))
    assert len(trained) == 3
    fuad.run(make(models={"padim": with_args(PADIM, pre_processor=SMALL, n_features=5)}, seeds=[0]))
    assert len(trained) == 4


def test_a_killed_run_loses_only_its_cell(
    make: Make, trained: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train = grid.run_cell

    def killed(cell: Cell, *args: Any) -> Any:
        if cell.seed == 1:
            raise KeyboardInterrupt
        return train(cell, *args)

    monkeypatch.setattr(grid, "run_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        fuad.run(make())
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 1
    monkeypatch.setattr(grid, "run_cell", train)
    assert fuad.run(make()) == 0
    assert trained == ["tiles noise 0.5 padim seed 0", "tiles noise 0.5 padim seed 1"]


def test_a_failure_is_recorded_the_rest_goes_on_and_it_is_tried_again(
    make: Make, trained: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train = grid.run_cell

    def fails(cell: Cell, *args: Any) -> Any:
        if cell.seed == 0:
            return record_of(cell, status="failed", error="RuntimeError: no memory left", measures={}), None
        return train(cell, *args)

    monkeypatch.setattr(grid, "run_cell", fails)
    assert fuad.run(make()) == 1
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["status"].tolist() == ["failed", "done"]
    assert results["error"][0] == "RuntimeError: no memory left"
    assert "seed 0: `RuntimeError: no memory left`" in (tmp_path / "out" / "report.md").read_text()
    assert "FAILED, RuntimeError: no memory left" in capsys.readouterr().out
    monkeypatch.setattr(grid, "run_cell", train)
    assert fuad.run(make()) == 0
    assert trained == ["tiles noise 0.5 padim seed 1", "tiles noise 0.5 padim seed 0"]


def test_a_dry_run_lists_the_cells(make: Make, trained: list[str], capsys: pytest.CaptureFixture) -> None:
    fuad.run(make(seeds=[1]))
    capsys.readouterr()
    fuad.run(make("--dry-run"))
    assert capsys.readouterr().out.splitlines() == [
        "to do  tiles noise 0.5 padim seed 0",
        "done   tiles noise 0.5 padim seed 1",
        "2 cells: 1 to do, 1 done",
    ]
    assert len(trained) == 1


def test_where_the_images_lie_is_not_part_of_a_cell(make: Make, tmp_path: Path) -> None:
    here, there = fuad.cells_of(make()), fuad.cells_of(make("--data_root", str(tmp_path)))
    assert [cell.key for cell in here] == [cell.key for cell in there]
    assert len({cell.key for cell in here}) == 2


def test_cells_of_images_elsewhere_are_said_to_be(
    make: Make, trained: list[str], mvtec_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fuad.run(make(seeds=[0]))
    fuad.run(make(seeds=[0]))
    assert "--output" not in capsys.readouterr().out
    fuad.run(make("--data_root", str(tmp_path)))
    assert f"of the images in {mvtec_root.resolve()}, and count for those in {tmp_path.resolve()} too" in (
        capsys.readouterr().out
    )
    assert len(trained) == 2


def test_what_is_in_a_file_is_part_of_a_cell(make: Make, tmp_path: Path) -> None:
    exclude, weights = tmp_path / "review.csv", tmp_path / "teacher.pth"
    cdd = {"class_path": "anomalib_cdd.Cdd", "init_args": {"backbone": "resnet18", "weights": str(weights)}}
    asked = make(data={"tiles": with_args(TILES, exclude=str(exclude))}, models={"padim": PADIM, "cdd": cdd})
    keys = []
    for names, state in (("a\n", "1"), ("a\nb\n", "1"), ("a\nb\n", "2"), ("a\n", "1")):
        exclude.write_text(f"image_path\n{names}")
        weights.write_text(state)
        keys.append({cell.model: cell.key for cell in fuad.cells_of(asked) if cell.seed == 0})
    assert keys[0] == keys[3]
    assert keys[0]["padim"] != keys[1]["padim"] == keys[2]["padim"]
    assert len({each["cdd"] for each in keys}) == 3


def test_the_teacher_that_cleans_is_part_of_a_cell(make: Make, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.pth"
    clean = {"share": 0.1, "weights": str(weights)}
    by_model = make(models={"plain": PADIM, "cleaned": PADIM | {"clean": clean}})
    by_data = make(data={"tiles": with_args(TILES, clean=clean)}, models={"padim": PADIM})
    keys = []
    for state in ("1", "2"):
        weights.write_text(state)
        cells = fuad.cells_of(by_model) + fuad.cells_of(by_data)
        keys.append({cell.model: cell.key for cell in cells if cell.seed == 0})
    assert {model for model in keys[0] if keys[0][model] != keys[1][model]} == {"cleaned", "padim"}


def test_a_record_names_the_commit_that_a_cell_began_with(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout may change while a model is trained."""
    at = ["before"]
    monkeypatch.setattr(one_cell, "commit", cache(lambda: at[0]))

    def train(*args: Any) -> Any:
        at[0] = "after"
        msg = "no matter what"
        raise ValueError(msg)

    monkeypatch.setattr(one_cell, "_train_and_measure", train)
    fuad.run(make())
    assert pd.read_csv(tmp_path / "out" / "results.csv")["commit"].tolist() == ["before"] * 2


@pytest.mark.parametrize(("workers", "left"), [(1, "1 h 00 min left"), (16, "1 h 00 min left")])
def test_a_last_cell_takes_its_time_however_many_could_run(
    make: Make,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    workers: int,
    left: str,
) -> None:
    @contextmanager
    def running(jobs: Any, *args: Any) -> Any:
        yield workers, ((i, record_of(cell, wall_seconds=3600.0), None) for i, (cell, _) in jobs.items())

    monkeypatch.setattr(grid, "_running", running)
    fuad.run(make())
    lines = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert [line.rpartition("; ")[2] for line in lines] == [left, "0 min 00 s left"]


def test_a_name_that_is_not_utf8_costs_its_cell_and_not_the_grid(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*args: Any) -> Any:
        msg = "cannot read Pr\udcfcf.png"
        raise ValueError(msg)

    monkeypatch.setattr(one_cell, "_train_and_measure", cannot)
    assert fuad.run(make()) == 2
    assert (
        pd.read_csv(tmp_path / "out" / "results.csv")["error"].tolist()
        == [r"ValueError: cannot read Pr\udcfcf.png"] * 2
    )


def test_a_cell_is_measured_where_it_was_trained(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # nothing can be computed there
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=True: torch.device("meta"))
    padim = with_args(PADIM, pre_processor=SMALL) | {"trainer": {"accelerator": "cpu"}}
    assert fuad.run(make(seeds=[0], models={"padim": padim})) == 0
    assert pd.read_csv(tmp_path / "out" / "results.csv")["false_alarms"].notna().all()


def test_a_cell_trains_on_one_device_whatever_there_is(make: Make) -> None:
    asked = make(seeds=[0])
    built = fuad.build_cell(fuad.cells_of(asked)[0].config, data_root=asked.data_root)
    assert built.trainer["devices"] == 1


def test_the_seed_reaches_injection_and_model(make: Make) -> None:
    cells = fuad.cells_of(make(models={"cdd": {"class_path": "anomalib_cdd.Cdd"}}, seeds=[7]))
    assert cells[0].config["data"]["init_args"]["noise_seed"] == 7
    assert cells[0].config["model"]["init_args"]["seed"] == 7


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"models": {"padim": with_args(PADIM, n_featurez=5)}}, "models.padim.*n_featurez"),
        ({"models": {"padim": {**PADIM, "trainer": {"max_epoch": 1}}}}, "models.padim.*max_epoch"),
        ({"models": {"padim": {**PADIM, "trainr": {}}}}, "models.padim: unknown key 'trainr'.*'clean'.*as JSON"),
        (
            {"models": {"padim": {**PADIM, "trainer": {"devices": 2}}}},
            "models.padim.trainer.devices is 2: .*one device",
        ),
        ({"seeds": [0, 1, 0]}, "seeds has 0 more than once"),
        ({"noise_ratios": [0.1, 0.5, 0.10]}, "noise_ratios has 0.1 more than once"),
        ({"seeds": [0, -1]}, "seeds has -1; give numbers from 0"),
        ({"noise_ratios": [0.1, -0.5]}, "noise_ratios has -0.5; give numbers from 0"),
        ({"noise_ratios": [float("nan")]}, "noise_ratios has nan; give numbers from 0"),
        ({"models": {"padim": {**PADIM, "trainer": [1]}}}, r"models.padim.trainer: \[1\] is no mapping"),
        ({"models": {"padim": {"init_args": {}}}}, "models.padim: no class_path"),
        ({"models": {"padim": {**PADIM, "clean": {"shar": 0.1}}}}, "models.padim.clean.*shar"),
        ({"models": {"padim": {**PADIM, "clean": {"share": 2}}}}, "models.padim.clean.*share.*2"),
        ({"models": {"padim": {**PADIM, "clean": "share"}}}, "models.padim.clean"),
        ({"models": {"x": {"class_path": "anomalib.models.Padimm"}}}, "models.x.*Padimm"),
        ({"models": {}}, "'models' is empty"),
        ({"data": {"tiles": with_args(TILES, categori="bottle")}}, "data.tiles.*categori"),
        ({"data": {"tiles": with_args(TILES, noise_ratio=0.1)}}, "data.tiles.*noise_ratio.*'noise_ratios'"),
        ({"data": {"tiles": with_args(TILES, manifest="a.csv")}}, "data.tiles.*manifest.*'noise_ratios'"),
        (
            {"data": {"x": {"class_path": "anomalib.data.MVTecAD"}}},
            "data.x: anomalib.data.MVTecAD takes no noise",
        ),
        ({"data": {"tiles": with_args(TILES, root="${data_rot}")}}, "data.tiles.*data_rot"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(
    make: Make, trained: list[str], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        fuad.run(make(**changes))
    assert trained == []


@pytest.mark.parametrize("argv", [(), ("--dry-run",)])
def test_a_data_root_that_is_not_there_is_refused_and_not_made(
    make: Make, trained: list[str], tmp_path: Path, argv: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=f"--data_root {tmp_path / 'nowhere'} is no folder"):
        fuad.run(make("--data_root", str(tmp_path / "nowhere"), *argv))
    assert not (tmp_path / "nowhere").exists()
    assert trained == []


def test_an_unknown_key_of_the_grid_is_named(make: Make, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        make(seedz=[1])
    assert "seedz" in capsys.readouterr().err


def test_time_left_counts_what_the_same_model_took(
    make: Make, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train = grid.run_cell

    def timed(cell: Cell, *args: Any) -> Any:
        record, arrays = train(cell, *args)
        return record | {"wall_seconds": 10.0 if cell.model == "fast" else 100.0}, arrays

    monkeypatch.setattr(grid, "run_cell", timed)
    fuad.run(make(models={"fast": PADIM, "slow": with_args(PADIM, n_features=5)}))
    left = [line.rpartition("; ")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    # after the first, three like it; after both, one of each; then the slow one alone
    assert left == ["0 min 30 s left", "1 min 50 s left", "1 min 40 s left", "0 min 00 s left"]


def test_the_course_of_a_training_is_measured_and_leaves_it_as_it_is(make: Make, tmp_path: Path) -> None:
    cdd = {
        "class_path": "anomalib_cdd.Cdd",
        "init_args": {"backbone": "resnet18", "pre_trained": False, "pre_processor": SMALL, "domains": [2]},
        "trainer": {"max_epochs": 5},
    }
    ends = []
    for name, every in (("plain", None), ("measured", 2)):
        options = {"models": {"cdd": cdd}, "seeds": [0], "output": str(tmp_path / name)}
        assert fuad.run(make(**options, **({"measure_every": every} if every else {}))) == 0
        ends.append(pd.read_csv(tmp_path / name / "results.csv"))
    assert ends[0]["image_AUROC"][0] == ends[1]["image_AUROC"][0]
    assert ends[0]["key"][0] != ends[1]["key"][0]
    curves = pd.read_csv(tmp_path / "measured" / "curves.csv")
    assert curves["epoch"].tolist() == [2, 4, 5]
    assert curves["image_AUROC"].iloc[-1] == ends[1]["image_AUROC"][0]
    assert curves[["image_AUROC", "image_AUROC_overlap", "injected_AUROC"]].notna().all(axis=None)
    assert not (tmp_path / "plain" / "curves.csv").exists()
    write_tables(tmp_path / "measured", pd.DataFrame({"a": [1]}), pd.DataFrame())  # a grid that measures none
    assert not (tmp_path / "measured" / "curves.csv").exists()
    assert list((tmp_path / "measured" / "figures").glob("*course*"))


def test_the_seconds_of_a_fit_are_without_those_of_measuring(
    make: Make, mvtec_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def score(*args: Any) -> None:
        nonlocal now
        now += 100

    def build(config: Any) -> Any:
        components = fuad.build_cell(config, str(mvtec_root))
        components.model.model.register_forward_pre_hook(score)
        return components

    off = dict.fromkeys(
        ("domain_construction", "pseudo_normal", "confidence_guidance", "confident_distillation"), False
    )
    off |= {"regularization": 0.0, "feature_noise": 0.0}
    small = {"backbone": "test_resnet", "pre_trained": False, "student_width": 8, "pre_processor": SMALL}
    rd = {"class_path": "anomalib_cdd.Cdd", "init_args": small | off, "trainer": {"max_epochs": 3}}
    config = make(seeds=[0], models={"rd": rd}, measure_every=1)
    assert grid.run(fuad.cells_of(config), build, config.output) == 0
    results = pd.read_csv(config.output / "results.csv")
    assert results["fit_seconds"].tolist() == [0]
    assert results["wall_seconds"][0] >= 300
