# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands that ``anomalib-cdd`` adds to anomalib's: ``demo``, ``audit`` and ``fuad``."""
