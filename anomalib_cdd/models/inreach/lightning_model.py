# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""InReaCh: a memory bank of patches that are found again in other training images.

McIntosh and Albu, ICCV 2023. :meth:`InReach.fill` is the method.
"""

from collections.abc import Sequence
from typing import cast

import torch
from anomalib.data import Batch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from torchvision.transforms.v2 import Normalize
from tqdm.auto import tqdm

from anomalib_cdd.training.defaults import LabelFreeDefaults
from anomalib_cdd.training.memory_bank import FillsMemoryBank

from .association import associate, is_aligned, large_channels, squared_to_mean, within_spread
from .torch_model import BLUR_SHARE, CHANNELS, POSITION_RANGE, STRIDE, BlockTeacher, InReachModel

# of the mean image to its transpose, on 0 to 255
ALIGNED_ERROR = 1000.0
# values of all training patches from which on they are projected: 256 MB in fp16
LARGE_SET = 2**27


class InReach(FillsMemoryBank, LabelFreeDefaults, AnomalibModule):  # type: ignore[misc]  # as anomalib's own
    """InReaCh (ICCV 2023): inter-realisation channels.

    Patches of a few seed images look for their like in all other images. What finds mutual nearest neighbours in more
    than a few images is normal and makes the bank; what is found in no other image stays out.

    The defaults are the paper's. While it fits it takes 2 bytes times patches times channels an image in a temporary
    file: 6.4 MB for 1,024 channels at 224, or 1.2 MB for 192, to which a training set of more than 2**27 values (about
    40 images at 224) is projected at random. In memory are the seeds' patches, the bank, and work space of a fixed size
    beside that. The bank itself is no coreset: it may hold most patches of the training set.

    Args:
        backbone: timm name of the teacher.
        layers: Names of the teacher's levels, one of stride 4 among them. ``None`` takes all: of a ResNet every block
            of ``layer1`` to ``layer3`` and the first of ``layer4``.
        pre_trained: Whether to load the teacher's weights.
        weights: A local weight file for the teacher, for sites without internet.
        seeds: Number of seed images, drawn at random; all where there are fewer.
        min_channel_size: A channel needs more members than this.
        filter_sigma: Members at this many standard deviations or more from their channel's mean leave it; ``None``
            leaves all in.
        positional: Whether each patch has its row and column appended. ``None`` does so where the mean training image
            differs from its transpose: where parts all lie in the same way.
        seed: What the seed images are drawn with.
        audit: Whether a fit ends with ``audit/`` in its results: the training images from most to least suspicious.
        pre_processor: anomalib's, or ``True`` for resize to 256, centre crop of 224 and the teacher's normalisation.
        post_processor: anomalib's, or whether to have the default.
        evaluator: anomalib's, or whether to have the default.
        visualizer: anomalib's, or whether to have the default.

    Raises:
        ValueError: If an option is out of its range, or the teacher has no level at stride 4.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cdd import InReach, MVTecNoisy
        >>> Engine().train(InReach(), datamodule=MVTecNoisy(category="bottle", noise_ratio=0.1))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        seeds: int = 10,
        min_channel_size: int = 3,
        filter_sigma: float | None = 5.0,
        positional: bool | None = None,
        seed: int = 0,
        audit: bool = True,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        # a ListConfig in the checkpoint would not load with weights_only
        layers = None if layers is None else tuple(str(layer) for layer in layers)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(backbone=backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        _check(seeds, min_channel_size, filter_sigma)
        self.model: InReachModel = InReachModel(BlockTeacher(backbone, layers, pre_trained, weights))
        self._image_sum: Tensor | float = 0.0

    def fill(self, images: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Fill the bank (Sec. 3); see :meth:`FillsMemoryBank.fill`."""
        options, count = self.hparams, len(images)
        self.model.position_range.fill_(POSITION_RANGE if self._has_positions(count) else 0.0)

        def patches_of(image: int) -> Tensor:
            return self.vectors(images[image], grid)

        # patches of all images join their mutual nearest neighbours among those of a few seeds
        generator = torch.Generator().manual_seed(options["seed"])
        seeds = sorted(torch.randperm(count, generator=generator)[: options["seeds"]].tolist())
        members = associate(patches_of, seeds, tqdm(range(count), desc="association", leave=False))

        # what came back in too few images leaves, then what lies far from its channel's mean
        members = members.where(large_channels(members.channels, options["min_channel_size"]))
        if len(members.images) == 0:
            msg = (
                f"No channel of {count} training images has more than {options['min_channel_size']} members. Add "
                "images, or lower min_channel_size."
            )
            raise ValueError(msg)
        if options["filter_sigma"] is not None:
            squared = squared_to_mean(members, patches_of)
            members = members.where(within_spread(squared, members.channels, options["filter_sigma"]))

        # the rest is the bank; a seed's patch may be in two channels
        known = (members.images * len(images[0]) + members.patches).unique()
        owners, places = known // len(images[0]), known % len(images[0])
        bank = patches_of(0).new_empty(len(owners), patches_of(0).shape[1])
        for image in owners.unique().tolist():
            own = owners == image
            bank[own] = patches_of(image)[places[own]]
        self.model.bank.fill(bank, sigma=BLUR_SHARE * min(self.image_size))
        return owners

    def vectors(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return an image's patches with their positions, as the bank compares them."""
        return torch.cat([super().vectors(image, grid), self.model.positions(*grid).flatten(1).T], dim=1)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """See at the first batch how large the training set is, and whether its patches have to be projected."""
        images = cast("Tensor", batch.image)
        if batch_idx == 0 and not self._is_fitted:
            height, width = images.shape[-2:]
            patches = self.trainer.num_training_batches * len(images) * height * width // STRIDE**2
            channels = min(CHANNELS, sum(self.model.teacher.channels))
            self.model.mix(projected=patches * channels > LARGE_SET)
            self._image_sum = 0.0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take the patches of a batch and its part of the mean image; see :meth:`FillsMemoryBank.training_step`."""
        loss = super().training_step(batch, batch_idx)
        self._image_sum = self._image_sum + cast("Tensor", batch.image).float().sum(dim=0)
        return loss

    def _has_positions(self, count: int) -> bool:
        if self.hparams["positional"] is not None:
            return self.hparams["positional"]
        mean_image = torch.as_tensor(self._image_sum / count)
        for normalize in extract_transforms_by_type(getattr(self.pre_processor, "transform", None), Normalize):
            mean, std = (mean_image.new_tensor(values)[:, None, None] for values in (normalize.mean, normalize.std))
            mean_image = mean_image * std + mean
        return is_aligned(255 * mean_image, ALIGNED_ERROR)


def _check(seeds: int, min_channel_size: int, filter_sigma: float | None) -> None:
    """Refuse options out of range.

    Raises:
        ValueError: Naming the option and its value.
    """
    for name, value in (("seeds", seeds), ("min_channel_size", min_channel_size)):
        if value < 1:
            msg = f"{name} is {value}; it has to be 1 or more."
            raise ValueError(msg)
    if filter_sigma is not None and not filter_sigma > 0:
        msg = f"filter_sigma is {filter_sigma}; it has to be more than 0, or null for no filter."
        raise ValueError(msg)
