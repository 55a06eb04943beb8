# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Each image is scored by a model that was trained without it, and a stopped run goes on."""

import importlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.models import AnomalibModule, Padim, Patchcore
from lightning.pytorch.callbacks import Callback
from PIL import Image
from samples import make_sample, save

from anomalib_cdd import Cdd, FolderNoisy, MVTecNoisy
from anomalib_cdd.cleaning import cross_domain_scores, write_exclude_list
from anomalib_cdd.cleaning.cross_domain import _fingerprint, deal, top_mean
from anomalib_cdd.data import Cleaning
from anomalib_cdd.training import source
from anomalib_cdd.training.report import TrainingReport

TRAINER = {"accelerator": "cpu", "max_epochs": 1}
TINY = {"backbone": "resnet18", "pre_trained": False}


@pytest.fixture
def data(mvtec_root: Path) -> MVTecNoisy:
    return MVTecNoisy(
        root=mvtec_root, category="bottle", noise_ratio=0.25, val_split_mode="none", train_batch_size=4, num_workers=0
    )


def padim() -> AnomalibModule:
    return Padim(**TINY, n_features=8, pre_processor=Padim.configure_pre_processor((64, 64)))


def patchcore() -> AnomalibModule:
    return Patchcore(**TINY, coreset_sampling_ratio=0.1, pre_processor=Padim.configure_pre_processor((64, 64)))


def cdd() -> AnomalibModule:
    pre_processor = Padim.configure_pre_processor((64, 64))
    return Cdd(backbone="test_resnet", pre_trained=False, student_width=8, audit=False, pre_processor=pre_processor)


class Watch(Callback):
    """Remembers which images each fit saw."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_train_start(self, trainer: object, pl_module: object) -> None:
        self.seen.append(set(trainer.datamodule.train_data.samples["image_path"]))


def test_parts_are_disjoint_and_of_equal_size() -> None:
    parts = deal(11, 3, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert all(np.array_equal(a, b) for a, b in zip(parts, deal(11, 3, seed=0), strict=True))
    assert not np.array_equal(parts[0], deal(11, 3, seed=1)[0])


def test_copies_of_an_image_are_scored_by_a_model_that_has_seen_none_of_them(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for number in range(6):
        image = make_sample(number).image
        for copy in ("a", "b"):
            save(image, root / f"{copy}_{number}.png")
    options = {"normal_dir": ".", "noise_ratio": 0, "test_split_mode": "none", "val_split_mode": "none"}
    data = FolderNoisy(name="parts", root=root, num_workers=0, **options)
    watch = Watch()
    cross_domain_scores(padim, data, folder=tmp_path, trainer=TRAINER | {"callbacks": [watch]}, progress=False)
    for seen in watch.seen:
        shown = sorted(Path(path).name[2:] for path in seen)
        assert shown[::2] == shown[1::2]


def test_the_score_is_the_mean_of_the_top_1_percent() -> None:
    maps = torch.arange(200.0).view(1, 10, 20)
    assert top_mean(maps).tolist() == [198.5]
    assert top_mean(torch.tensor([[[3.0, 7.0]]])).tolist() == [7.0]


@pytest.mark.parametrize("factory", [padim, patchcore, cdd])
def test_no_model_scores_what_it_was_trained_on(
    factory: Callable[[], AnomalibModule], data: MVTecNoisy, tmp_path: Path
) -> None:
    watch = Watch()
    trainer = TRAINER | {"callbacks": [watch]}
    report = cross_domain_scores(factory, data, folder=tmp_path, trainer=trainer, progress=False)
    everything = {str(path) for path in data.train_data.samples["image_path"]}
    assert set(report.image_paths) == everything
    assert np.isfinite(report.scores).all()
    assert report.scores.std() > 0
    left_out = [everything - seen for seen in watch.seen]
    assert sorted(path for part in left_out for path in part) == sorted(everything)
    assert len(data.train_data) == 15
    assert report.maps is not None
    assert {values.shape for values in report.maps} == {(64, 64)}
    # of the image that the score is of: a part that is read back has the same
    again = cross_domain_scores(factory, data, folder=tmp_path, trainer=trainer, progress=False)
    assert again.maps is not None
    assert all(np.array_equal(one, other) for one, other in zip(report.maps, again.maps, strict=True))
    highest = [values.max() for values in report.maps]
    assert np.corrcoef(report.scores, highest)[0, 1] > 0.9


def test_a_stopped_run_goes_on_with_what_is_missing(data: MVTecNoisy, tmp_path: Path) -> None:
    def run(folder: Path, seed: int = 0) -> tuple[int, np.ndarray]:
        watch = Watch()
        trainer = TRAINER | {"callbacks": [watch]}
        report = cross_domain_scores(padim, data, folder=folder, trainer=trainer, seed=seed, progress=False)
        return len(watch.seen), report.scores

    trained, expected = run(tmp_path / "scores")
    assert trained == 3
    assert run(tmp_path / "scores")[0] == 0
    (tmp_path / "scores" / "part_2_of_3.npz").unlink()
    (tmp_path / "scores" / "part_3_of_3.npz").write_bytes(b"half a file")
    trained, scores = run(tmp_path / "scores")
    assert trained == 2
    assert np.allclose(scores, expected)
    # the scores of another run are no part of this one
    assert run(tmp_path / "scores", seed=1)[0] == 3


def test_parts_of_other_code_are_not_taken(data: MVTecNoisy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()

    def trained() -> int:
        cross_domain_scores(padim, data, folder=tmp_path, trainer=TRAINER | {"callbacks": [watch]}, progress=False)
        return len(watch.seen)

    assert trained() == 3
    monkeypatch.setattr(source, "version", lambda name: "another")
    assert trained() == 6


def test_scores_of_another_size_of_images_are_not_taken(data: MVTecNoisy, tmp_path: Path) -> None:
    def run(size: int) -> tuple[int, list[float]]:
        def factory() -> AnomalibModule:
            return Padim(**TINY, n_features=8, pre_processor=Padim.configure_pre_processor((size, size)))

        watch = Watch()
        trainer = TRAINER | {"callbacks": [watch]}
        report = cross_domain_scores(factory, data, folder=tmp_path, trainer=trainer, progress=False)
        return len(watch.seen), report.scores.tolist()

    (trained, small), (again, large) = run(64), run(96)
    assert (trained, again) == (3, 3)
    assert small != large
    assert run(96) == (0, large)


def test_a_run_that_is_interrupted_keeps_finished_parts(data: MVTecNoisy, tmp_path: Path) -> None:
    made = []

    def interrupted() -> AnomalibModule:
        made.append(padim())
        if len(made) == 4:  # the first tells what kind of model it is
            raise KeyboardInterrupt
        return made[-1]

    with pytest.raises(KeyboardInterrupt):
        cross_domain_scores(interrupted, data, folder=tmp_path, trainer=TRAINER, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part_1_of_3.npz", "part_2_of_3.npz"]


def test_an_interrupt_within_a_fit_is_one(data: MVTecNoisy, tmp_path: Path) -> None:
    class Interrupts(Callback):
        def on_train_batch_start(self, *args: object) -> None:
            raise KeyboardInterrupt

    before, trainer = signal.getsignal(signal.SIGINT), TRAINER | {"callbacks": [Interrupts()]}
    try:
        with pytest.raises(KeyboardInterrupt):
            cross_domain_scores(padim, data, folder=tmp_path, trainer=trainer, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning has it ignored


def test_in_sample_votes_are_lenient_with_a_models_own_images(data: MVTecNoisy, tmp_path: Path) -> None:
    watch = Watch()
    trainer = TRAINER | {"callbacks": [watch]}
    alone, within, out = (
        cross_domain_scores(patchcore, data, folder=tmp_path / folder, trainer=trainer, in_sample=flag, progress=False)
        for folder, flag in (("alone", False), ("both", True), ("both", False))
    )
    is_noise = data.train_data.samples["is_noise"].to_numpy(dtype=bool)
    assert (within.scores[is_noise] < out.scores[is_noise]).all()
    assert within.scores.mean() < out.scores.mean()
    # models that voted on every image need not be trained again to judge those that they have not learned from
    assert len(watch.seen) == 2 * 3
    assert np.allclose(alone.scores, out.scores)
    assert alone.maps is not None
    assert out.maps is not None
    assert all(np.allclose(one, other, atol=1e-3) for one, other in zip(alone.maps, out.maps, strict=True))


def test_a_model_is_trained_on_what_a_report_leaves(data: MVTecNoisy, tmp_path: Path) -> None:
    report = cross_domain_scores(padim, data, folder=tmp_path, trainer=TRAINER, progress=False)
    cleaned = write_exclude_list(report, data, tmp_path / "left_out.csv", Cleaning(share=0.2))
    worst = {report.image_paths[row] for row in np.argsort(-report.scores)[:3]}
    assert {path for path, gone in zip(cleaned.image_paths, cleaned.left_out, strict=True) if gone} == worst
    samples = data.train_data.samples
    noise = set(samples["image_path"][samples["is_noise"].to_numpy(dtype=bool)])
    assert cleaned.noise_left == len(noise - worst)
    options = {"root": data.root, "category": "bottle", "noise_ratio": 0.25, "val_split_mode": "none"}
    rest = MVTecNoisy(**options, exclude=tmp_path / "left_out.csv")
    rest.setup()
    assert set(rest.train_data.samples["image_path"]) == set(samples["image_path"]) - worst
    # what was left out before is in the list of what is left out now
    second = cross_domain_scores(padim, rest, folder=tmp_path / "rest", trainer=TRAINER, progress=False)
    write_exclude_list(second, rest, tmp_path / "more.csv", Cleaning(share=0.1))
    final = MVTecNoisy(**options, exclude=tmp_path / "more.csv")
    final.setup()
    assert len(final.train_data) == len(rest.train_data) - 1
    assert set(final.train_data.samples["image_path"]) < set(rest.train_data.samples["image_path"])
    # without a rule the default one, of deviations
    assert write_exclude_list(report, data, tmp_path / "left_out.csv").left_out.sum() < len(samples) / 2


def test_every_part_has_the_white_of_the_whole(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    root.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 1020, (64, 64)).astype(np.uint16)
        if number == 3:
            pixels[20:40, 20:40] = 3000
        Image.fromarray(pixels).save(root / f"{number}.png")
    options = {"normal_dir": ".", "noise_ratio": 0, "test_split_mode": "none", "val_split_mode": "none"}
    data = FolderNoisy(name="parts", root=root, num_workers=0, train_batch_size=4, **options)
    whites = []

    class White(Callback):
        def on_train_start(self, trainer: object, pl_module: Any) -> None:
            whites.append(pl_module.reader.white)

    cross_domain_scores(cdd, data, 2, folder=tmp_path, trainer=TRAINER | {"callbacks": [White()]}, progress=False)
    assert whites == [4095, 4095]


def test_another_teacher_of_the_same_name_scores_anew(data: MVTecNoisy, tmp_path: Path) -> None:
    data.setup()
    weights, keys = tmp_path / "teacher.pth", []
    for size in (1, 1, 2):
        if not keys or size == 2:
            weights.write_bytes(b"0" * size)
        model = SimpleNamespace(hparams={"weights": str(weights)}, pre_processor=None)
        keys.append(_fingerprint(model, data, 3))
    assert keys[0] == keys[1] != keys[2]


def test_copies_of_a_file_say_what_is_usual_only_once(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for number in range(10):
        for copy in range(12 if number == 0 else 1):
            save(make_sample(number).image, root / f"{number}_{copy}.png")
    options = {"normal_dir": ".", "noise_ratio": 0, "test_split_mode": "none", "val_split_mode": "none"}
    data = FolderNoisy(name="parts", root=root, num_workers=0, **options)
    data.setup()
    paths = [str(path) for path in data.train_data.samples["image_path"]]
    numbers = [int(Path(path).name[0]) for path in paths]
    # counted singly, the twelve zeros would be more than half of the scores and the MAD 0
    scores = np.array([60 if number == 9 else number for number in numbers], dtype=np.float32)
    cleaned = write_exclude_list(TrainingReport(paths, scores), data, tmp_path / "left_out.csv")
    assert [number for number, gone in zip(numbers, cleaned.left_out, strict=True) if gone] == [9]


@pytest.mark.parametrize(
    ("domains", "message"),
    [(1, "domains has to be at least 2, found 1"), (8, "15 training images are too few for 8 domains: at most 7")],
)
def test_a_number_of_domains_that_cannot_be_is_refused(
    data: MVTecNoisy, tmp_path: Path, domains: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cross_domain_scores(padim, data, domains, folder=tmp_path, progress=False)


def test_what_clean_left_out_is_in_the_list_of_what_is_left_out(data: MVTecNoisy, tmp_path: Path) -> None:
    clean = Cleaning(share=0.2, backbone="test_resnet", pre_trained=False)
    options = {"root": data.root, "category": "bottle", "noise_ratio": 0.25, "val_split_mode": "none"}
    cleaned = MVTecNoisy(**options, clean=clean, train_batch_size=4, num_workers=0)
    report = cross_domain_scores(padim, cleaned, folder=tmp_path, trainer=TRAINER, progress=False)
    write_exclude_list(report, cleaned, tmp_path / "left_out.csv", Cleaning(share=0.1))
    rest = MVTecNoisy(**options, exclude=tmp_path / "left_out.csv")
    rest.setup()
    left = set(cleaned.train_data.samples["image_path"])
    assert set(rest.train_data.samples["image_path"]) < left
    assert len(rest.train_data) == len(left) - 1


OWN = "from anomalib.models import Padim\n\n\nclass Own(Padim):\n    VERSION = {}\n"


def test_scores_are_of_the_code_of_a_users_own_model(
    data: MVTecNoisy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for version in (1, 1, 2):
        (tmp_path / "own_model.py").write_text(OWN.format(version))
        sys.modules.pop("own_model", None)
        importlib.invalidate_caches()
        own = importlib.import_module("own_model").Own
        model = own(**TINY, n_features=8, pre_processor=Padim.configure_pre_processor((64, 64)))
        data.setup()
        keys.append(_fingerprint(model, data))
    assert keys[0] == keys[1] != keys[2]


def test_a_model_that_a_notebook_defines_can_be_asked(data: MVTecNoisy, tmp_path: Path) -> None:
    space = {"__name__": "no_such_module"}
    exec(OWN.format(1), space)  # noqa: S102  # as a notebook does

    def make() -> AnomalibModule:
        return space["Own"](**TINY, n_features=8, pre_processor=Padim.configure_pre_processor((64, 64)))

    report = cross_domain_scores(make, data, domains=2, folder=tmp_path, trainer=TRAINER, progress=False)
    assert np.isfinite(report.scores).all()
