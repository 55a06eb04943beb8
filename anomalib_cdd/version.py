# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The package's version, which records of results carry."""

__version__ = "0.2.0"
