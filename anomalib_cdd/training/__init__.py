# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What every model of this package shares in a fit: epochs in stages, defaults, checkpoints, devices, files."""
