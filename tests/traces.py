# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Exports of one model are traced once: seconds each, and an export to OpenVINO begins with one to ONNX."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch


@contextmanager
def kept_traces() -> Iterator[None]:
    """Let ``torch.onnx.export`` write again what it has written of the same model in the same state."""
    export, kept = torch.onnx.export, {}

    def once(model: torch.nn.Module, args: tuple[torch.Tensor, ...], f: str, **options: Any) -> Any:
        state = hashlib.sha256()
        for name, value in model.state_dict().items():
            state.update(name.encode() + (value.numpy().tobytes() if isinstance(value, torch.Tensor) else b""))
        key = (id(model), str(model), state.digest(), [each.shape for each in args], repr(options))
        folder = Path(f).parent
        for known, _, files in kept.setdefault(Path(f).name, []):
            if known == key:
                for name, content in files.items():
                    (folder / name).write_bytes(content)
                return None
        before = set(folder.iterdir())
        program = export(model, args, f, **options)
        files = {path.name: path.read_bytes() for path in set(folder.iterdir()) - before}
        kept[Path(f).name].append((key, model, files))  # alive, its id stays its own
        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", once)
        yield
