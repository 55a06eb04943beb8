# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Datamodules whose training sets are not clean."""

from anomalib_cdd.data.clean import Cleaning
from anomalib_cdd.data.datamodules import (
    BTechNoisy,
    DatumaroNoisy,
    FolderNoisy,
    MPDDNoisy,
    MVTecLOCONoisy,
    MVTecNoisy,
    VisaNoisy,
)
from anomalib_cdd.data.elpv import Elpv, ElpvDataset, ElpvNoisy
from anomalib_cdd.data.noise import NoiseInjection
from anomalib_cdd.data.predict import PredictImages

__all__ = [
    "BTechNoisy",
    "Cleaning",
    "DatumaroNoisy",
    "Elpv",
    "ElpvDataset",
    "ElpvNoisy",
    "FolderNoisy",
    "MPDDNoisy",
    "MVTecLOCONoisy",
    "MVTecNoisy",
    "NoiseInjection",
    "PredictImages",
    "VisaNoisy",
]
