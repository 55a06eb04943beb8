# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive reconstruction of two encoders' features."""

from .lightning_model import ReContrast
from .torch_model import ReContrastModel

__all__ = ["ReContrast", "ReContrastModel"]
