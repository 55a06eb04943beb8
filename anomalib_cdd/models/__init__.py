# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Models for training sets that are not clean."""

from .cdd import Cdd
from .crosspatch import CrossPatch
from .dmdd import Dmdd
from .dtsnet import Dtsnet
from .inreach import InReach
from .mhkd import Mhkd
from .recontrast import ReContrast
from .softpatch import SoftPatch
from .urd import Urd

__all__ = ["Cdd", "CrossPatch", "Dmdd", "Dtsnet", "InReach", "Mhkd", "ReContrast", "SoftPatch", "Urd"]
