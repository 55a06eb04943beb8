# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Every grid that ships is complete, and its models are the rows of the paper's tables."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from anomalib_cdd.benchmark.paper import paper_results
from anomalib_cdd.benchmark.plan import Cell
from anomalib_cdd.cli.fuad import cells_of, get_parser
from anomalib_cdd.models.cdd.checks import check_options
from anomalib_cdd.models.cdd.lightning_model import PAPER

CONFIGS = Path(__file__).parents[2] / "configs"
CELLS = {
    "fuad": 4 * 4 * 8 * 3,
    "cleaning": 4 * 2 * 13 * 3,
    "rivals": 4 * 13 * 3,
    "bottle": (9 + 5) * 3,
    "few_images": 3 * 5 * 3,
    "false_alarms": 2 * 6 * 3,
    "small_sets": 3 * 11 * 3,
    "ablation_table4": 2 * (6 + 2) * 3,
    "ablation_table5": 5 * 3,
    "ablation_table6": 3 * 3,
    "ablation_table_a1": 5 * 3,
    "ablation_table_a2": 4 * 3,
    "long_training": 3 * 3,
    "paper_mvtec_table": 15 * 10 * 3,
    "paper_visa_table": 12 * 8 * 3,
}
# the ticks of the paper's Table 4: D.C., Conf.G., Reg., P.N., F.P., Conf.D.; row 2 has P.N. too, without which it
# would be row 1
TABLE_4 = ["------", "x--x--", "xx-x--", "x--x-x", "xx-xxx", "xxxxxx"]
TICKS = {
    "domain_construction": True,
    "confidence_guidance": True,
    "regularization": "s-curve",
    "pseudo_normal": True,
    "feature_noise": 0.2,
    "confident_distillation": True,
}
TABLES = {
    "ablation_table5": ("domains", [[2], [3], [4], [2, 3, 3, 2], [2, 3, 4, 3, 2]]),
    "ablation_table6": ("selection", ["all", "next", "consensual"]),
    "ablation_table_a1": ("max_confident", [0.0, 0.1, 0.3, 0.5, 0.7]),
    "ablation_table_a2": ("regularization", [0.0, 1.0, "linear", "s-curve"]),
}


@cache
def plan(name: str) -> list[Cell]:
    config = get_parser().parse_args(["--config", str(CONFIGS / f"{name}.yaml"), "--data_root", "datasets"])
    return cells_of(config)


def models_of(name: str) -> dict[str, dict[str, Any]]:
    """Return each model's arguments, in the order of the file."""
    return {cell.model: copy.deepcopy(cell.config["model"]["init_args"]) for cell in plan(name)}


def test_every_grid_is_looked_at() -> None:
    shipped = {path.stem for path in CONFIGS.glob("*.yaml") if "noise_ratios:" in path.read_text(encoding="utf-8")}
    assert shipped == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_grid_has_its_cells_and_no_two_are_the_same(name: str) -> None:
    cells = plan(name)
    assert len(cells) == len({cell.key for cell in cells}) == CELLS[name]
    for cell in cells:
        if cell.config["model"]["class_path"] == "anomalib_cdd.Cdd":
            options = cell.config["model"]["init_args"]
            plain = {key: value for key, value in options.items() if key != "pre_processor"}
            # raises if an option is out of range or two contradict each other
            check_options(OmegaConf.create(plain), plain)


def test_table_4_has_the_papers_rows() -> None:
    rows = []
    models = models_of("ablation_table4")
    assert models.pop("default") == models_of("fuad")["cdd"]
    assert models.pop("default_every") == models_of("fuad")["cdd_every"]
    for arguments in models.values():
        assert arguments["domains"] == [2]
        rows.append("".join("x" if arguments[name] == on else "-" for name, on in TICKS.items()))
        assert all(arguments[name] in {on, 0} for name, on in TICKS.items())
    assert rows == TABLE_4


@pytest.mark.parametrize("name", TABLES)
def test_an_ablation_changes_its_switch_alone(name: str) -> None:
    switch, values = TABLES[name]
    models = models_of(name)
    assert [arguments.pop(switch) for arguments in models.values()] == values
    first, *others = models.values()
    assert all(other == first for other in others)


def test_the_ablations_stand_on_the_papers_setting() -> None:
    full = models_of("ablation_table5")["k2"]
    assert all(full[name] == on for name, on in TICKS.items())
    assert (full["max_confident"], full["confident_patches"]) == (0.5, 0.0)
    assert all(arguments["domains"] == [3] for arguments in models_of("ablation_table6").values())
    assert models_of("ablation_table4")["all"] == models_of("ablation_table_a2")["s_curve"] == full
    a1 = models_of("ablation_table_a1")["r50"]
    assert (a1["domains"], a1["regularization"], a1["feature_noise"]) == ([2], 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("paper_mvtec_table", "cdd_paper"), ("paper_visa_table", "cdd_paper"), ("fuad", "cdd_paper"),
        ("bottle", "cdd_paper"), ("bottle", "cdd_paper_lite2"), ("small_sets", "cdd_paper"),
        ("long_training", "cdd_paper"), ("rivals", "cdd_paper"), ("few_images", "cdd_paper"),
    ],
)  # fmt: skip
def test_what_is_called_the_papers_has_its_setting(name: str, model: str) -> None:
    options = models_of(name)[model]
    assert {key: options[key] for key in PAPER} == PAPER | {"domains": list(PAPER["domains"])}


@pytest.mark.parametrize("name", ["paper_mvtec", "paper_visa"])
def test_the_papers_own_runs_have_its_setting(name: str) -> None:
    options = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    assert {key: options[key] for key in PAPER} == PAPER | {"domains": list(PAPER["domains"])}


@pytest.mark.parametrize(("name", "data"), [("paper_mvtec_table", "MVTec AD"), ("paper_visa_table", "VisA")])
def test_the_papers_tables_have_its_categories(name: str, data: str) -> None:
    cells = plan(name)
    named = {cell.data: cell.config["data"]["init_args"]["category"] for cell in cells}
    assert all(key == category for key, category in named.items())
    reported = paper_results().query("data == @data")
    assert [*named, "Average"] == reported["category"].unique().tolist()
    columns = {method.lower() for method in reported["method"]} - {"fun-ad"} | {"cdd_paper"}
    beside = {"anomalib_rd", "patchcore", "crosspatch"}
    assert set(models_of(name)) == columns | beside
    banks = {"patchcore", "softpatch", "crosspatch", "inreach"}
    assert {cell.config["trainer"].get("max_epochs") for cell in cells if cell.model not in banks} == {200}
    rd = models_of(name)["rd"]
    assert not any(rd[switch] for switch in TICKS)


@pytest.mark.parametrize("name", ["bottle", "small_sets"])
def test_the_long_grids_measure_the_course_of_every_training(name: str) -> None:
    cells = plan(name)
    assert {cell.config["measure_every"] for cell in cells} == {25 if name == "bottle" else 50}
    banks = ("patchcore", "crosspatch", "softpatch")
    assert {cell.config["trainer"].get("max_epochs") for cell in cells if not cell.model.startswith(banks)} == {200}
    kinds = {cell.config["model"]["init_args"].get("domain_students") for cell in cells if "cdd" in cell.model}
    assert kinds == {"forked", "persistent", 0.5}


def test_patchcore_has_its_own_coreset_in_every_grid() -> None:
    for name in CELLS:
        for cell in plan(name):
            if cell.config["model"]["class_path"].endswith("Patchcore"):
                assert cell.config["model"]["init_args"]["coreset_sampling_ratio"] == 0.1, name
