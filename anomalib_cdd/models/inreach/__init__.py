# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""InReaCh."""

from .lightning_model import InReach
from .torch_model import InReachModel

__all__ = ["InReach", "InReachModel"]
