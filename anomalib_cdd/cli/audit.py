# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``anomalib-cdd audit``: any folder of images, ranked without a training, by a checkpoint or by cross-domain training."""

import inspect
import sys
from pathlib import Path
from typing import Any

from anomalib.models import AnomalibModule, list_models
from anomalib.utils.path import convert_snake_to_pascal_case
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.util import import_object

from anomalib_cdd.audit.callback import FOLDER
from anomalib_cdd.audit.results import REVIEW, Shown, open_images, write_results
from anomalib_cdd.audit.scores import ScoredImages, score_by_model
from anomalib_cdd.cli.entries import ConfigError
from anomalib_cdd.data import FolderNoisy
from anomalib_cdd.data.manifest import read_review
from anomalib_cdd.training.images import TrainingImages

DESCRIPTION = """
Rank the images of a folder from most to least suspicious, on a page to look through and mark.
Without --ckpt_path and --model no training is needed: an image is suspicious where it shows what the others do not.
With --ckpt_path a trained model scores the images. With --model alone, several of that model are trained, each on a
part of the folder, and score the parts that they have not learned from.
"""
