# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Finding defects in images when the training data is not clean: a plugin for anomalib.

Importing it registers its models and datamodules where anomalib looks names up, so that ``get_model``,
``get_datamodule``, the CLI and the benchmark know them, and its PyPI teacher where timm looks.
"""

import anomalib.data
import anomalib.models

from . import cleaning, data, models, teachers
from .audit import TrainingAudit
from .data import *  # noqa: F403
from .data import clean
from .evaluation import FuadEvaluator
from .models import *  # noqa: F403
from .thresholds import LabelFreePostProcessor
from .training import defaults
from .training.reading import read_image
from .version import __version__

__all__ = ["FuadEvaluator", "LabelFreePostProcessor", "TrainingAudit", "__version__"]
__all__ += ["cleaning", "data", "models", "read_image", "teachers"]
__all__ += data.__all__
__all__ += models.__all__


def _register() -> None:
    """Make the public classes known to anomalib; what anomalib already has stays anomalib's."""
    anomalib.models.ALLOWED_MODULES.add(__name__)
    for home, names in ((anomalib.models, models.__all__), (anomalib.data, data.__all__)):
        for name in names:
            if not hasattr(home, name):
                setattr(home, name, globals()[name])


_register()
defaults.provide(post_processor=LabelFreePostProcessor, audit=TrainingAudit, normalisation=teachers.normalisation)
clean.provide(judge=cleaning.judge)
