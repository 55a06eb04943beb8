# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Where bf16 is worth it. A processor without bf16 arithmetic takes tens of times as long for it as for fp32."""

from contextlib import AbstractContextManager, nullcontext

import torch

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


def full_precision(device_type: str) -> AbstractContextManager:
    """Leave autocast, where there is one: an export traces no context."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
