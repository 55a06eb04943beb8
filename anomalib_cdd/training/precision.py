# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Where bf16 is worth it. A processor without bf16 arithmetic takes tens of times as long for it as for fp32."""

from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch import Trainer

# what torch calls the instructions, on x86 and on Arm
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether a device has bf16 arithmetic of its own."""
    if device.type == "cpu":
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def check_precision(trainer: Trainer) -> None:
    """Refuse a precision in which weights and images would differ.

    Raises:
        ValueError: If the weights themselves would have it.
    """
    if str(trainer.precision).endswith("-true") and trainer.precision != "32-true":
        msg = (
            f"precision is {trainer.precision}: the model's weights would have it, and anomalib's tests give images in "
            "fp32. Set bf16-mixed or 32-true."
        )
        raise ValueError(msg)


def full_precision(device_type: str) -> AbstractContextManager:
    """Leave autocast, where there is one: an export traces no context."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def is_traced() -> bool:
    """Return whether an export or a compiler follows what is computed."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
