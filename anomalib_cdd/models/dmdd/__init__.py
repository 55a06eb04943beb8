# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Dual-modelling decouple distillation."""

from .lightning_model import Dmdd
from .torch_model import DmddModel

__all__ = ["Dmdd", "DmddModel"]
