# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A denoising teacher-student network."""

from .lightning_model import Dtsnet
from .torch_model import DtsnetModel

__all__ = ["Dtsnet", "DtsnetModel"]
