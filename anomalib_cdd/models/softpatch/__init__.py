# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""SoftPatch."""

from .lightning_model import SoftPatch
from .torch_model import SoftPatchModel

__all__ = ["SoftPatch", "SoftPatchModel"]
