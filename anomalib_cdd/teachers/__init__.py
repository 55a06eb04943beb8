# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Teachers by name, the students that fit them, and the distances between their features. Knows no method."""

from .backbones import Level, Teacher, normalisation
from .students import Student, build_student

__all__ = ["Level", "Student", "Teacher", "build_student", "normalisation"]
