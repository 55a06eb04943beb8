# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison grid: its cells (``plan``), how one is trained and measured (``run``), what is kept, its report."""
