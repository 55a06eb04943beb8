# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-Domain Distillation."""

from .lightning_model import Cdd
from .torch_model import CddModel

__all__ = ["Cdd", "CddModel"]
