# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What the README tells people to type is what works."""

import re
import shutil
from pathlib import Path

import pytest

import anomalib_cdd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_own_folder_in_five_lines(folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's own code, with a folder, a small teacher and one epoch in place of what it names."""
    shutil.copytree(folder_root / "good", tmp_path / "my" / "folder")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    for told, here in (
        ("Cdd()", 'Cdd(backbone="test_resnet", pre_trained=False, student_width=8, visualizer=False)'),
        ("max_epochs=200", 'max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False'),
        ('root="my/folder"', 'root="my/folder", num_workers=0'),
    ):
        assert told in code
        code = code.replace(told, here)
    names: dict = {}
    exec(code, names)  # noqa: S102
    ranking = names["training_ranking"](names["model"], names["data"], progress=False)
    assert len(ranking) == 12
    assert next((tmp_path / "results" / "Cdd" / "parts").rglob("model.ckpt"))


def test_files_and_names_that_the_readmes_mention_exist() -> None:
    model_readme = Path(anomalib_cdd.models.cdd.__file__).parent / "README.md"
    for name in re.findall(r"`([\w/]+\.(?:yaml|py|ipynb))`", README):
        assert (
            (ROOT / name).exists() or (ROOT / "configs" / name).exists() or (ROOT / "anomalib_cdd" / name).exists()
        ), name
    for name in re.findall(r"`(\w+\.py)`", model_readme.read_text(encoding="utf-8")):
        assert (model_readme.parent / name).exists(), name
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / link).exists(), link
