# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Images to predict: anomalib's ``PredictDataset`` for any path, read as the model's training images were."""

from pathlib import Path

from anomalib.data import PredictDataset
from torch.utils.data import Dataset
from torchvision.transforms.v2 import Transform

from anomalib_cdd.training.image_files import image_files
from anomalib_cdd.training.read_alike import Reader, read_by


class PredictImages(PredictDataset):
    """An image, or a folder of images with all its subfolders; ``Engine.predict(dataset=PredictImages(path))``.

    Args:
        path: File or folder. anomalib's own data set refuses names outside ASCII and paths of more than 512 characters,
            and takes hidden files for images.
        transform: Transform of each image.
        white: Value that becomes 1 in images of more than eight bits, where a model that is not of this package
            predicts; a model of this package knows its own.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a folder has no image.
    """

    def __init__(self, path: str | Path, transform: Transform | None = None, white: int | None = None) -> None:
        # not PredictDataset's: it refuses paths
        Dataset.__init__(self)
        path = Path(path).absolute()
        if not path.exists():
            msg = f"there is no file or folder {path}"
            raise FileNotFoundError(msg)
        self.image_filenames = [path] if path.is_file() else image_files(path)
        if not self.image_filenames:
            msg = f"there is no image in {path}"
            raise ValueError(msg)
        self.transform = transform
        read_by(self, Reader(white))
