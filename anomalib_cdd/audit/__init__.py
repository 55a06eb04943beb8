# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The audit of a set of images, from most to least suspicious, for a person to look through."""

from .callback import TrainingAudit, data_root
from .results import write_audit

__all__ = ["TrainingAudit", "data_root", "write_audit"]
