# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Reverse distillation with an expert, a trained teacher and guided information injection."""

from .lightning_model import Urd
from .torch_model import UrdModel

__all__ = ["Urd", "UrdModel"]
