# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""anomalib's image datamodules with anomalies in their training sets: three lines each.

Any other image datamodule of anomalib takes :class:`NoiseInjection` in the same way.
"""

import pandas as pd
from anomalib.data import MPDD, BTech, Datumaro, Folder, MVTecAD, MVTecLOCO, Visa
from anomalib.data.utils import Split

from anomalib_cdd.data.folder import FolderImages, folder_samples
from anomalib_cdd.data.noise import NoiseInjection


class MVTecNoisy(NoiseInjection, MVTecAD):
    """MVTec AD, or any folder of its layout, with a noisy training set."""


class VisaNoisy(NoiseInjection, Visa):
    """VisA with a noisy training set."""


class BTechNoisy(NoiseInjection, BTech):
    """BTech with a noisy training set."""


class MPDDNoisy(NoiseInjection, MPDD):
    """MPDD with a noisy training set."""


class MVTecLOCONoisy(NoiseInjection, MVTecLOCO):
    """MVTec LOCO AD with a noisy training set; its validation images are normal and stay so."""

    def _setup(self, _stage: str | None = None) -> None:
        # anomalib puts lists of masks into a text column, which pandas 3 refuses unless text is a mere object to it
        with pd.option_context("future.infer_string", False):
            super()._setup(_stage)


class FolderNoisy(NoiseInjection, Folder):
    """Folders of one's own images with a noisy training set; how they are read: ``docs/reading.md``.

    It takes the arguments of :class:`~anomalib_cdd.data.noise.NoiseInjection` and those of anomalib's ``Folder``.
    """

    def _setup(self, _stage: str | None = None) -> None:
        samples = folder_samples(
            self.root, self.normal_dir, self.abnormal_dir, self.normal_test_dir, self.mask_dir, self.extensions
        )
        self.train_data = FolderImages(self.name, samples, Split.TRAIN)
        self.test_data = FolderImages(self.name, samples, Split.TEST)


class DatumaroNoisy(NoiseInjection, Datumaro):
    """A Datumaro export with a noisy training set."""
