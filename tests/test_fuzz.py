# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever is in a file, it is read, or refused in one line that names it: 1,000 seeded cases, FUZZ_SCALE times.

The exceptions are those that the readers document; a KeyError or a library's own says nothing to whoever has the file.
"""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from mutations import BYTES, TEXT, mutate
from PIL import Image

from anomalib_cdd import Cdd
from anomalib_cdd.benchmark import records, scores
from anomalib_cdd.benchmark.plan import Cell
from anomalib_cdd.cli.entries import ConfigError
from anomalib_cdd.data import FolderNoisy
from anomalib_cdd.data.elpv import make_elpv_dataset
from anomalib_cdd.data.manifest import read_exclude_list, read_manifest, read_review
from anomalib_cdd.training.checkpoints import readable_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# as they are: a UnicodeDecodeError or a JSONDecodeError is a ValueError too, and says little
SCALE = int(os.environ.get("FUZZ_SCALE", "1"))
DOCUMENTED = {ValueError, OSError, FileNotFoundError, ConfigError}


def what_is_wrong(error: Exception, path: Path) -> str:
    """Say why this is no error to show; empty if it is one."""
    if type(error) not in DOCUMENTED:
        return "not documented"
    text = str(error)
    return "not named" if str(path) not in text else "not one line" if "\n" in text or len(text) > 1000 else ""


def fuzz(
    path: Path, contents: Iterator[bytes], read: Callable[[], Any], is_result: Callable[[Any], bool]
) -> dict[str, int]:
    """Read each content; return how many were read and how many refused."""
    counts = {"read": 0, "refused": 0}
    for number, content in enumerate(contents):
        path.write_bytes(content)
        case = f"case {number}: {content[:200]!r}"
        try:
            result = read()
        except Exception as error:
            if what_is_wrong(error, path):
                msg = f"{case}: {what_is_wrong(error, path)}: {error!r}"
                raise AssertionError(msg) from error
            counts["refused"] += 1
        else:
            assert is_result(result), f"{case}: {result!r}"
            counts["read"] += 1
    return counts


def mutated(content: bytes, count: int, kinds: Any, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    return (mutate(content, rng, kinds) for _ in range(count * SCALE))


# --- images


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images() -> Iterator[bytes]:
    """Valid ones of every kind, each damaged in many ways."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 255, (24, 40), dtype=np.uint8))
    colour = Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65535, (24, 40), dtype=np.uint16))
    valid = [
        *(encoded(grey.convert(mode), "PNG") for mode in ("L", "1", "P", "LA")),
        *(encoded(colour.convert(mode), "PNG") for mode in ("RGB", "RGBA", "P")),
        *(encoded(colour.convert(mode), kind) for mode in ("RGB", "CMYK") for kind in ("JPEG", "TIFF")),
        *(encoded(colour, kind) for kind in ("BMP", "GIF", "WEBP", "PPM", "ICO")),
        *(encoded(deep, kind) for kind in ("PNG", "TIFF")),
        encoded(Image.fromarray(rng.random((24, 40)).astype(np.float32)), "TIFF"),
        *(encoded(Image.new("RGB", size), "PNG") for size in ((1, 1), (20_000, 1), (1, 20_000))),
    ]
    yield from valid
    source = random.Random(1)
    while True:
        yield mutate(source.choice(valid), source, BYTES)


@pytest.fixture
def folder(tmp_path: Path) -> FolderNoisy:
    """A folder of one's own with three images."""
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        Image.new("RGB", (40, 24), "grey").save(tmp_path / "parts" / name)
    options = {"noise_ratio": 0, "test_split_mode": "none", "val_split_mode": "none", "num_workers": 0}
    return FolderNoisy(name="parts", root=tmp_path / "parts", normal_dir=".", **options)


@pytest.mark.filterwarnings("ignore")
def test_images(folder: FolderNoisy, tmp_path: Path) -> None:
    folder.setup()
    source = images()
    counts = fuzz(
        tmp_path / "parts" / "b.png",
        (next(source) for _ in range(400 * SCALE)),
        lambda: folder.train_data[1].image,
        lambda image: image.shape[0] == 3 and image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1,
    )
    assert min(counts.values()) > 50


@pytest.mark.parametrize("kind", ["folder", "loop", "dangling", "text"])
def test_what_only_looks_like_an_image_by_its_name(folder: FolderNoisy, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "parts" / "d.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no image")
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "nowhere.png")

    def read() -> int:
        folder.setup()
        return len([item.image for item in folder.train_data])

    if kind == "folder":
        assert read() == 3
        return
    with pytest.raises((ValueError, OSError)) as raised:
        read()
    assert what_is_wrong(raised.value, path) == ""


# --- tables


MANIFEST = b'image_path,is_noise\ngood/000.png,0\ngood/001.png,0\n"odd, name.png",1\ngood/003.png,1\n'


def test_manifests(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    counts = fuzz(
        path,
        mutated(MANIFEST, 200, TEXT, 2),
        lambda: read_manifest(path),
        lambda split: all(isinstance(name, str) and isinstance(flag, bool) for name, flag in split.items()),
    )
    assert min(counts.values()) > 5


def test_exclude_lists(tmp_path: Path) -> None:
    path = tmp_path / "exclude.csv"
    counts = fuzz(
        path,
        mutated(MANIFEST, 150, TEXT, 3),
        lambda: read_exclude_list(path),
        lambda names: all(isinstance(name, str) for name in names),
    )
    assert min(counts.values()) > 20


def test_reviews(tmp_path: Path) -> None:
    path = tmp_path / "review.json"
    content = json.dumps({"images": {"good/000.png": "bad", 'odd, "name".png': "good", "ü.png": "bad"}}).encode()
    words = (b"null", b"[]", b"{}", b"1", b'"unseen"', b'"Bad"')
    kinds = (*TEXT, lambda text, rng: text.replace(rng.choice([b'"bad"', b'"good"', b"{"]), rng.choice(words), 1))
    counts = fuzz(
        path,
        mutated(content, 100, kinds, 6),
        lambda: read_review(path).images,
        lambda review: all(isinstance(name, str) and verdict in {"good", "bad"} for name, verdict in review.items()),
    )
    assert min(counts.values()) > 5


def test_labels_of_solar_cells(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = [f"images/cell{number:04}.png  {number % 2}.0  mono" for number in range(8)]
    content = "\n".join([*rows, "images/cell0008.png  0.3333333333333333  poly", ""]).encode()

    def is_table(samples: pd.DataFrame) -> bool:
        return samples["image_path"].map(lambda name: isinstance(name, str) and str(tmp_path) in name).all()

    kinds = (*TEXT, lambda text, rng: text.replace(b"mono", rng.choice([b"", b"mono mono", b"poly", b"\xff"])))
    counts = fuzz(path, mutated(content, 80, kinds, 4), lambda: make_elpv_dataset(tmp_path), is_table)
    assert min(counts.values()) > 10


@pytest.mark.parametrize("name", ["/etc/cell.png", "../cell.png", "images/../../cell.png"])
def test_labels_lead_to_no_file_outside_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "labels.csv").write_text(f"images/cell0000.png  0.0  mono\n{name}  1.0  mono\n")
    with pytest.raises(ValueError, match="row 2 is not"):
        make_elpv_dataset(tmp_path)


# --- the grid's cells


def test_a_record_without_one_of_its_fields_is_not_whole(tmp_path: Path) -> None:
    cell = Cell("tiles", 0.1, "cdd", 0, {"data": {}, "model": {"class_path": "some.Cdd"}, "trainer": {}})
    (tmp_path / "cells").mkdir()
    record = {"key": cell.key, "wall_seconds": 3.5, "environment": {}, "config": cell.config, "status": "done"}
    record |= {"measures": {}, "fit_seconds": None, "course": []}
    records.save_record(tmp_path, cell, record)
    assert records.read_record(tmp_path, cell) == record
    for name in records.FIELDS:
        records.save_record(tmp_path, cell, {key: value for key, value in record.items() if key != name})
        assert records.read_record(tmp_path, cell) is None, name


def test_records_of_cells(tmp_path: Path) -> None:
    parts = {"data": {"class_path": "some.Data", "init_args": {}}, "model": {"class_path": "some.Cdd", "init_args": {}}}
    cell = Cell("tiles", 0.1, "cdd", 0, {**parts, "trainer": {}})
    folder = tmp_path / "out" / "cells"
    folder.mkdir(parents=True)
    record = {"key": cell.key, "wall_seconds": 3.5, "environment": {"torch": "2"}, "config": cell.config}
    record |= {"status": "done", "measures": {"image_AUROC": 0.5, "noise_AP": None}, "fit_seconds": 2.0, "course": []}
    content = json.dumps(record, indent=1).encode()
    words = (b"null", b"[]", b"{}", b"NaN", b"1e999", b'"x"', b"true")

    def value(text: bytes, rng: random.Random) -> bytes:
        changed = json.loads(text) if text == content else {}
        if changed:
            changed[rng.choice(list(changed))] = json.loads(rng.choice(words))
        return json.dumps(changed).encode()

    def is_record(read: dict[str, Any]) -> bool:
        records.write_tables(tmp_path / "out", records.results_of([cell], [read]), records.curves_of([cell], [read]))
        return len(pd.read_csv(tmp_path / "out" / "results.csv")) == 1

    path = folder / f"{cell.key}.json"
    seen = {True: 0, False: 0}
    for damaged in mutated(content, 90, (*BYTES, value, value), 5):
        path.write_bytes(damaged)
        read = records.read_record(tmp_path / "out", cell)  # None: named in a warning, and the cell runs again
        assert read is None or is_record(read)
        seen[read is None] += 1
    assert min(seen.values()) > 2


def test_scores_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "cell.npz"
    rng = np.random.default_rng(0)
    arrays = {"train_scores": rng.random(20), "test_scores": rng.random(30), "test_labels": np.arange(30) % 2}
    scores.save(path, arrays)
    content = path.read_bytes()

    def are_arrays(read: dict[str, Any]) -> bool:
        return all(isinstance(values, np.ndarray) for values in read.values())

    # the archive's own checksums find every change
    damaged = fuzz(path, mutated(content, 110, BYTES, 6), lambda: scores.load(path), are_arrays)
    assert damaged["refused"] > 100
    assert fuzz(path, iter([content]), lambda: scores.load(path), are_arrays)["read"] == 1


# --- checkpoints


MANGLED = [OSError(22, "Invalid argument"), RuntimeError("Error(s) in loading state_dict for Cdd:\n\tMissing key(s)")]


@pytest.mark.parametrize("error", MANGLED, ids=lambda error: type(error).__name__)
def test_what_reading_a_checkpoint_raises_is_one_line_that_names_it(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "model.ckpt"
    path.touch()
    with pytest.raises(ValueError, match=r"is (damaged|not of Cdd)") as raised, readable_checkpoint(path, "Cdd"):
        raise error
    assert what_is_wrong(raised.value, path) == ""


def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    model = Cdd(backbone="test_resnet", pre_trained=False, student_width=8, visualizer=False, audit=False)
    plain = {"state_dict": model.state_dict(), "hyper_parameters": {"backbone": "test_resnet", "student_width": 8}}
    plain |= {"pytorch-lightning_version": "2.6.0", "epoch": 1, "global_step": 3}
    torch.save(plain, path)
    content = path.read_bytes()

    def cases() -> Iterator[bytes]:
        yield from mutated(content, 30, BYTES, 8)
        for key in plain:
            for value in (None, [], {"a": 1}, "text"):
                file = io.BytesIO()
                torch.save({**plain, key: value}, file)
                yield file.getvalue()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist()[:10]:
                file = io.BytesIO()
                with zipfile.ZipFile(file, "w") as other:
                    for kept in archive.namelist():
                        if kept != name:
                            other.writestr(kept, archive.read(kept))
                yield file.getvalue()

    options = {"visualizer": False, "audit": False}
    counts = fuzz(path, cases(), lambda: Cdd.load_from_checkpoint(path, **options), lambda read: isinstance(read, Cdd))
    assert counts["refused"] > 10
