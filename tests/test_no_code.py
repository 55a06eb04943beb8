# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Files are data: none runs code, whoever wrote it. Weight files and checkpoints of Cdd have tests beside theirs."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.models import Padim

from anomalib_cdd.__main__ import main
from anomalib_cdd.benchmark import scores


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that is there once the code has run."""
    return tmp_path / "ran"


def test_the_code_here_would_run(ran: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", a=np.array([Evil(ran)], dtype=object))
    with np.load(tmp_path / "evil.npz", allow_pickle=True) as file:
        _ = file["a"]
    assert ran.exists()


@pytest.mark.parametrize("kind", ["an array", "all of it", "a file within"])
def test_scores_of_a_cell(ran: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cell.npz"
    pickled = io.BytesIO()
    np.save(pickled, np.array([Evil(ran)], dtype=object), allow_pickle=True)
    if kind == "an array":
        np.savez(path, test_scores=np.zeros(3), train_scores=np.array([Evil(ran)], dtype=object))
    elif kind == "all of it":
        torch.save(Evil(ran), path, _use_new_zipfile_serialization=False)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("test_scores.npy", pickled.getvalue())
    with pytest.raises(ValueError, match=r"cell\.npz cannot be read as a cell's scores"):
        scores.load(path)
    assert not ran.exists()


@pytest.mark.parametrize("command", ["fuad", "demo", "train"])
@pytest.mark.parametrize("key", ["models", "seed_everything", "output"])
@pytest.mark.parametrize("tag", ["apply:os.system", "new:subprocess.Popen", "name:os.system"])
def test_tags_of_a_configuration(ran: Path, tmp_path: Path, command: str, key: str, tag: str) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"{key}: !!python/object/{tag} ['touch {ran}']\n")
    with pytest.raises(SystemExit) as ended:
        main([command, "--config", str(path)])
    assert ended.value.code
    assert not ran.exists()


def test_a_checkpoint_of_another_model_that_the_audit_is_given(
    ran: Path, tmp_path: Path, mvtec_root: Path, capsys: pytest.CaptureFixture
) -> None:
    model = Padim(backbone="resnet18", layers=["layer1"], n_features=4, pre_trained=False)
    path = tmp_path / "evil.ckpt"
    plain: dict[str, Any] = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save({**plain, "hyper_parameters": Evil(ran)}, path)
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--model", "Padim", "--ckpt_path", str(path), "--data", str(mvtec_root)])
    assert f"{path} is no checkpoint of Padim" in str(ended.value.code)
    assert "\n" not in str(ended.value.code)
    assert not ran.exists()
