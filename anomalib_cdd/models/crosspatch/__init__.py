# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""CrossPatch: a memory bank that asks more than one image."""

from .lightning_model import CrossPatch

__all__ = ["CrossPatch"]
