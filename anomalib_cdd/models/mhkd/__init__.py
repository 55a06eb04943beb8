# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-task hybrid knowledge distillation."""

from .lightning_model import Mhkd
from .torch_model import MhkdModel

__all__ = ["Mhkd", "MhkdModel"]
