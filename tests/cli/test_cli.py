# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The command line is anomalib's, knows this package's names, and has two subcommands more."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from anomalib.data import get_datamodule
from anomalib.pipelines.benchmark.job import BenchmarkJob
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from jsonargparse._typehints import ActionTypeHint

from anomalib_cdd.__main__ import let_benchmark_rows_differ, main
from anomalib_cdd.cli import demo, fuad, parsers
from anomalib_cdd.cli.entries import resolve_model

CONFIGS = Path(__file__).parents[2] / "configs"


def run(capsys: pytest.CaptureFixture, *argv: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(list(argv))
    captured = capsys.readouterr()
    code = exit_.value.code
    return (code or 0, captured.out + captured.err) if not isinstance(code, str) else (1, code)


def test_help_lists_anomalibs_subcommands_and_ours(capsys: pytest.CaptureFixture) -> None:
    code, text = run(capsys, "--help")
    assert code == 0
    for name in ("train", "test", "predict", "export", "benchmark", "demo", "fuad"):
        assert f"    {name} " in text


@pytest.mark.parametrize("name", ["demo", "fuad"])
def test_help_of_our_subcommands(capsys: pytest.CaptureFixture, name: str) -> None:
    code, text = run(capsys, name, "--help")
    assert code == 0
    assert "--output" in text
    assert "--models" in text


@pytest.mark.parametrize(("name", "ratio"), [("paper_mvtec", 0.1), ("paper_visa", 0.05)])
def test_papers_settings_parse(capsys: pytest.CaptureFixture, name: str, ratio: float) -> None:
    code, text = run(capsys, "train", "--config", str(CONFIGS / f"{name}.yaml"), "--print_config")
    assert code == 0
    config = yaml.safe_load(text[text.index("seed_everything") :])
    assert config["model"]["class_path"] == "anomalib_cdd.Cdd"
    assert config["model"]["init_args"]["learning_rate"] == 0.005
    assert config["data"]["init_args"]["noise_ratio"] == ratio
    assert config["trainer"]["max_epochs"] == 200


def test_names_are_known_in_either_order(capsys: pytest.CaptureFixture) -> None:
    code, text = run(capsys, "train", "--data", "MVTecNoisy", "--model", "Cdd", "--print_config")
    assert code == 0
    assert re.search(r"class_path: [\w.]*\.Cdd\n", text)
    assert re.search(r"class_path: [\w.]*\.MVTecNoisy\n", text)


def test_a_wrong_grid_ends_in_one_line(capsys: pytest.CaptureFixture) -> None:
    code, text = run(capsys, "fuad", "--models", '{"x": {"class_path": "Padim"}}', "--data", '{"a": {}}')
    assert code == 1
    assert text == (
        "error: data.a: no class_path. Known: ['class_path', 'init_args']; on the command line an entry is given "
        "whole, as JSON."
    )


SMALL = ("--model.backbone", "test_resnet", "--model.pre_trained", "false")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("Cdd", "--model.max_confident", "2"), "max_confident is 2.0; it has to be in [0, 1]."),
        (("Cdd", "--model.weights", "/no/file"), "Weight file /no/file does not exist."),
        (("Mhkd", "--model.weights", "no.pth"), "no.pth"),
        (("SoftPatch", *SMALL, "--model.threshold", "2"), "threshold is 2.0"),
        (("Dmdd", *SMALL, "--model.layers", "[layer1]"), "layer"),
        (("Cdd", *SMALL, "--data.noise_ratio", "-1"), "noise_ratio has to be a finite number of at least 0, found -1"),
        (("Cdd", *SMALL, "--data.clean.share", "3"), "clean: share has to be at least 0 and below 1, found 3.0"),
    ],
)
def test_what_a_model_or_a_data_set_refuses_is_one_line(
    capsys: pytest.CaptureFixture, argv: tuple[str, ...], named: str
) -> None:
    code, text = run(capsys, "train", "--data", "MVTecNoisy", "--model", *argv)
    assert code == 1
    assert text.startswith("error: ")
    assert named in text
    assert "\n" not in text


def test_the_grid_runs_from_the_command_line(mvtec_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main([
        "fuad", "--config", str(CONFIGS / "fuad.yaml"), "--data_root", str(mvtec_root), "--output", str(tmp_path),
        "--seeds", "[0]", "--dry-run",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert said.count("to do  ") == 4 * 4 * 8
    assert said.endswith("128 cells: 128 to do, 0 done\n")


def test_ctrl_c_ends_the_grid_in_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuad, "run", interrupted)
    code, text = run(capsys, "fuad")
    assert code == 130
    assert text.strip() == "stopped; the same command goes on with the cells that are not finished"


def test_ctrl_c_ends_the_demo_in_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    code, text = run(capsys, "demo", "--config", str(CONFIGS / "demo.yaml"))
    assert code == 130
    assert text.strip() == "stopped; the same command begins anew"


@pytest.mark.parametrize("name", ["benchmark", "benchmark_wrn50"])
def test_benchmarks_have_their_jobs(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    jobs = list(get_iterator_from_grid_dict(config["benchmark"]))
    assert len(jobs) == 9
    names = [job["model"]["class_path"] for job in jobs]
    assert {*names} == {"Cdd", "Patchcore"} | ({"ReverseDistillation"} if name == "benchmark_wrn50" else set())
    assert get_datamodule(jobs[-1]["data"]).noise_seed == 2


def test_benchmark_rows_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """anomalib collects rows by the columns of the first one and fails where another model has other arguments."""
    rows = [
        {"model": "Cdd", "image_AUROC": 0.9, "domains": 2},
        {"model": "Patchcore", "image_AUROC": 0.8, "ratio": 0.1},
    ]
    with pytest.raises((KeyError, ValueError)):
        BenchmarkJob.collect(rows)
    monkeypatch.setattr(BenchmarkJob, "collect", BenchmarkJob.collect)
    let_benchmark_rows_differ()
    table = BenchmarkJob.collect(rows)
    assert table["image_AUROC"].tolist() == [0.9, 0.8]
    assert table["ratio"].isna().tolist() == [True, False]


def test_train_predict_and_export_from_the_command_line(
    mvtec_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [
        "--model", "anomalib_cdd.Cdd", "--model.backbone", "test_resnet", "--model.pre_trained", "false",
        "--model.student_width", "8", "--model.domains", "[2]",
    ]  # fmt: skip
    data = ["--data", "MVTecNoisy", "--data.root", str(mvtec_root), "--data.category", "bottle"]
    main([
        "train", *model, *data, "--data.noise_ratio", "0.25", "--data.train_batch_size", "4", "--data.num_workers", "0",
        "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    ])  # fmt: skip
    results = tmp_path / "results" / "Cdd" / "MVTecNoisy" / "bottle" / "v0"
    checkpoint = results / "weights" / "lightning" / "model.ckpt"
    assert (results / "manifest.csv").exists()
    assert (results / "audit" / "index.html").exists()
    assert len(list(results.rglob("images/**/*.png"))) == 17  # 6 normal, 14 anomalous less the 3 injected
    images = mvtec_root / "bottle" / "test" / "spot"
    main(["predict", *model, "--data", str(images), "--ckpt_path", str(checkpoint)])
    main(["export", *model, "--ckpt_path", str(checkpoint), "--export_type", "torch", "--export_root", str(tmp_path)])
    assert (tmp_path / "weights" / "torch" / "model.pt").exists()
    with pytest.raises(SystemExit, match=r"^error: Checkpoint .*nowhere.ckpt does not exist\.$"):
        main(["predict", *model, "--data", str(images), "--ckpt_path", str(tmp_path / "nowhere.ckpt")])
    wider = [*model, "--model.student_width", "16"]
    with pytest.raises(SystemExit, match=r"^error: The checkpoint is not of this model"):
        main(["predict", *wider, "--data", str(images), "--ckpt_path", str(checkpoint)])


def test_a_seed_gives_the_same_model_twice(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model of anomalib's, whose first weights and order of images are nobody's but the command line's."""
    ends = []
    for folder, seed in (("one", 0), ("two", 0), ("other", 1)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        main([
            "fit", "--model", "ReverseDistillation", "--model.backbone", "resnet18", "--model.pre_trained", "false",
            "--model.visualizer", "false", "--data", "MVTecNoisy", "--data.root", str(mvtec_root),
            "--data.train_batch_size", "4", "--data.num_workers", "0", "--data.val_split_mode", "none",
            "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu",
            "--seed_everything", str(seed),
        ])  # fmt: skip
        [checkpoint] = (tmp_path / folder).rglob("model.ckpt")
        state = torch.load(checkpoint, weights_only=False, map_location="cpu")["state_dict"]
        ends.append({name: value for name, value in state.items() if name.startswith("model.")})
    one, two, other = ends
    assert [name for name, value in one.items() if not torch.equal(value, two[name])] == []
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_parser_of_a_nested_class_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = ActionTypeHint.get_class_parser, []
    monkeypatch.setattr(parsers, "_MADE", {})
    monkeypatch.setattr(
        ActionTypeHint, "get_class_parser", staticmethod(lambda *args: made.append(str(args)) or make(*args))
    )
    entry = yaml.safe_load((CONFIGS / "cleaning.yaml").read_text())["models"]["patchcore"]
    first, second = (resolve_model("models.patchcore", entry) for _ in range(2))
    assert first == second
    assert len(made) == len(set(made)) < 20  # some hundred without
    size = first[0]["init_args"]["pre_processor"]["init_args"]["transform"]["init_args"]["transforms"][0]["init_args"]
    assert size["size"] == [184, 184]
