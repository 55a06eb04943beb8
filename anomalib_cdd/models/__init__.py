# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Models for training sets that are not clean."""

from .cdd import Cdd
from .crosspatch import CrossPatch
from .inreach import InReach
from .mhkd import Mhkd
from .softpatch import SoftPatch

__all__ = ["Cdd", "CrossPatch", "InReach", "Mhkd", "SoftPatch"]
