# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Speed, measured so that it can be believed: ``make bench``, or ``python -m benchmarks --help``.

Each row runs in a process of its own, alternates the two sides that it compares (A B A B ...) after a warm-up, and
reports medians and their ratio: seconds differ from machine to machine, ratios less. Epochs run one side after the
other, each after one of warm-up; ``fit_banks``, which takes minutes, runs each fit once, without. Weights and images
are random; a network takes no longer for what it has learned. No test asserts a time.
"""
