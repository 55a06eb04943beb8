# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Models for training sets that are not clean."""

from .cdd import Cdd
from .crosspatch import CrossPatch
from .dmdd import Dmdd
from .mhkd import Mhkd

__all__ = ["Cdd", "CrossPatch", "Dmdd", "Mhkd"]
