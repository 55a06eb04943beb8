# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Which devices have bf16 arithmetic of their own."""

from typing import Any

import pytest
import torch

from anomalib_cdd.training.precision import computes_in_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
    ],
)
def test_a_processor_computes_in_bf16_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_in_bf16(CPU) is expected


def test_a_device_that_is_not_known_is_left_alone() -> None:
    assert not computes_in_bf16(torch.device("meta"))
