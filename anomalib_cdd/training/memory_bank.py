# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""One pass over the training images fills a memory bank, which then scores each of them without the image's own part.

For models that keep patches: they write how patches are taken (``model.patches``) and which are kept (``fill``); the
epoch, the report, checkpoints and Lightning's methods are here.
"""

import mmap
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from anomalib.data import Batch
from anomalib.models.components import MemoryBankMixin
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from tqdm.auto import tqdm

from .epochs import TrainsByEpochs
from .image_files import contents_of, first_of_each
from .report import TrainingReport
from .scoring import sample_pixels


class PatchFile:
    """Patches of training images in fp16, in a file of the system's temporary folder that memory is mapped to.

    The system keeps in memory what there is room for. ``TMPDIR`` says where the file lies; where the system can, it has
    no name, so that a kill leaves nothing.
    """

    def __init__(self) -> None:
        # what could not be written is not tried again when the file is closed
        self._file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by close()
        self.image_paths: list[str] = []
        self.shape: tuple[int, ...] = ()

    def add(self, patches: Tensor, image_paths: Sequence[str]) -> None:
        """Write patches ``(B, C, h, w)`` of B images.

        Raises:
            ValueError: If they are of another shape than those before.
            OSError: If the disk is full.
        """
        shape = tuple(patches.shape[1:])
        if self.shape and shape != self.shape:
            msg = (
                f"{image_paths[0]} has a patch grid of {shape[1:]} and images before it one of {self.shape[1:]}. "
                "Resize images to one size in the pre-processor."
            )
            raise ValueError(msg)
        self.shape = shape
        self.image_paths += image_paths
        values = patches.permute(0, 2, 3, 1).half().cpu().contiguous().numpy()
        rest = memoryview(values.data).cast("B")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            msg = (
                f"The patches of the training images cannot be written to {tempfile.gettempdir()} ({error.strerror}): "
                f"{values[0].nbytes:,} bytes an image. TMPDIR names another place, such as a larger disk."
            )
            raise OSError(msg) from error

    def images(self) -> list[Tensor]:
        """Return the patches ``(h * w, C)`` of each image, mapped to memory."""
        channels, height, width = self.shape
        mapping = mmap.mmap(self._file.fileno(), 0)
        return list(torch.frombuffer(mapping, dtype=torch.float16).view(-1, height * width, channels))

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


class FillsMemoryBank(TrainsByEpochs, MemoryBankMixin):
    """Mixin before ``AnomalibModule`` for a model that keeps patches of the training images.

    The model's ``model`` has ``patches(images)``, shape ``(B, C, h, w)``, and, where :meth:`judge` is not its own, a
    :class:`~anomalib_cdd.teachers.bank.PatchBank` as ``bank``.
    """

    default_epochs = 1
    keeps_patches = True
    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patch_file: PatchFile | None = None
        self._report: TrainingReport | None = None
        self._is_to_stop = False
        self._contents: list[str] = []  # of the files of a fit, in the order of their paths
        self.image_size: tuple[int, int] = (0, 0)

    def fill(self, images: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Fill the bank.

        Args:
            images: Patches ``(P, C)`` in fp16 of each of N training images, 2 or more, in the order of their paths.
            grid: Height and width of the grid of an image's P patches.

        Returns:
            What :meth:`judge` has to know: the image, 0 to N - 1, that each patch of the bank is from, shape ``(M,)``.
        """
        raise NotImplementedError

    def vectors(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return what the bank compares of an image's patches ``(P, C)``: in fp32, where the model is."""
        del grid
        return image.to(self.device).float()

    # ------------------------------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Begin a bank, unless a fit that has made one is resumed.

        Raises:
            ValueError: If the checkpoint is from within an epoch: the patches of the epoch's beginning are lost.
        """
        trainer = cast("Any", self).trainer
        if trainer.ckpt_path is None:
            self._is_fitted.fill_(value=False)
        elif not self._is_fitted and trainer.fit_loop.epoch_loop.batch_progress.current.completed:
            msg = (
                f"The checkpoint {trainer.ckpt_path} is from within an epoch: it has no patches of the images that "
                f"came before. {type(self).__name__} takes one epoch; begin anew."
            )
            raise ValueError(msg)
        self._is_to_stop = False
        self._forget_patches()
        self._patch_file = PatchFile()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take the patches of a batch.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, normalised.
            batch_idx: Index of the batch.

        Returns:
            Zero: there is nothing to optimise.
        """
        del batch_idx
        if self._patch_file is not None and not self._is_fitted:
            images, first = cast("Tensor", batch.image), len(self._patch_file.image_paths)
            paths = getattr(batch, "image_path", None) or range(first, first + len(images))
            self.image_size = (images.shape[-2], images.shape[-1])
            with torch.no_grad():
                self._patch_file.add(self.model.patches(images), [str(path) for path in paths])
        return torch.tensor(0.0, requires_grad=True, device=self.device)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Put off a stop, such as a time limit's, until the bank has seen every image."""
        super().on_train_batch_end(*args, **kwargs)  # type: ignore[misc]  # LightningModule's
        trainer = cast("Any", self).trainer
        if not self._is_fitted:
            self._is_to_stop = self._is_to_stop or trainer.should_stop
            trainer.should_stop = self._is_to_stop and trainer.is_last_batch

    def on_validation_start(self) -> None:
        """Fill the bank before it is validated.

        Raises:
            ValueError: If that is before the training images have been seen.
        """
        trainer = cast("Any", self).trainer
        if trainer.state.fn == TrainerFn.FITTING and not trainer.is_last_batch and not self._is_fitted:
            msg = (
                f"val_check_interval is {trainer.val_check_interval}: the memory bank is complete only after the last "
                "training batch. Set it to 1.0."
            )
            raise ValueError(msg)
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_start()

    @torch.no_grad()
    def fit(self) -> None:
        """Fill the bank from the patches that were taken, then ask it about each image without the image's own.

        Raises:
            ValueError: If there are fewer than two images.
        """
        if self._patch_file is None or len(self._patch_file.image_paths) < 2:
            count = 0 if self._patch_file is None else len(self._patch_file.image_paths)
            msg = f"{type(self).__name__} compares training images with each other and there are {count}. Add images."
            raise ValueError(msg)
        paths, grid = self._patch_file.image_paths, (self._patch_file.shape[1], self._patch_file.shape[2])
        # the same whatever the order in which the images came
        order = sorted(range(len(paths)), key=paths.__getitem__)
        mapped = self._patch_file.images()
        images = [mapped[place] for place in order]
        paths = [paths[place] for place in order]
        self._contents = contents_of(paths)
        maps = self.judge(images, self.fill(images, grid).to(self.device), grid)
        self._report = None if maps is None else _report(paths, self._contents, maps)
        self._forget_patches()

    def judge(self, images: list[Tensor], known: Tensor, grid: tuple[int, int]) -> Iterable[Tensor] | None:
        """Set the bank's scale, and ask it about each image without the patches of the image and of its copies.

        Args:
            images: As in :meth:`fill`.
            known: What that returned.
            grid: As in :meth:`fill`.

        Returns:
            The map ``(1, 1, H, W)`` of each image, one at a time, or ``None`` where there is nobody to judge one.
        """
        bank = self.model.bank
        first = torch.tensor(first_of_each(self._contents), device=known.device)
        if (first == 0).all():  # copies of one image have nobody else to ask
            first = torch.arange(len(images), device=known.device)
        bar = tqdm(
            zip(images, first, strict=True), "training images without their own patches", len(images), leave=False
        )
        found = [bank.distances(self.vectors(image, grid), first[known] != own) for image, own in bar]
        distances = torch.stack(found)
        finite = distances[distances.isfinite()]
        mean = finite.mean() if len(finite) else finite.new_zeros(())
        bank.scale.fill_(mean if mean > 0 else 1.0)
        return (bank.anomaly_map(each.view(1, 1, *grid), self.image_size) for each in distances)

    def training_report(self) -> TrainingReport | None:
        """Return scores and pixels of the training images by all patches of the bank but the image's own."""
        return self._report

    def teardown(self, stage: str) -> None:
        """Delete patches of a fit that did not end."""
        super().teardown(stage)  # type: ignore[misc]  # LightningModule's
        self._forget_patches()

    def _forget_patches(self) -> None:
        if self._patch_file is not None:
            self._patch_file.close()
        self._patch_file = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what inference needs: anomalib's torch export pickles the whole module."""
        return super().__getstate__() | {"_patch_file": None, "_report": None, "_contents": []}

    # ------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the report."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]  # AnomalibModule's
        if self._report is not None:
            saved: dict[str, Any] = {"image_paths": self._report.image_paths, "contents": list(self._report.contents)}
            saved["scores"] = torch.from_numpy(self._report.scores)
            if self._report.pixels is not None:
                saved["pixels"] = torch.from_numpy(self._report.pixels)
            checkpoint["training_report"] = saved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the report back."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]  # AnomalibModule's
        saved = checkpoint.get("training_report")
        self._report = None
        if saved is not None:
            pixels = saved["pixels"].numpy() if "pixels" in saved else None  # fits of early versions kept none
            contents = saved.get("contents", ())
            self._report = TrainingReport(
                saved["image_paths"], saved["scores"].numpy(), pixels=pixels, contents=contents
            )

    # ------------------------------------------------------------------------------------------ Lightning

    @staticmethod
    def configure_optimizers() -> None:
        """Return nothing: there is nothing to optimise."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments that the trainer must have: one pass over the training images, on one device."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}


def _report(image_paths: list[str], contents: list[str], maps: Iterable[Tensor]) -> TrainingReport:
    """Keep of each map ``(1, 1, H, W)`` its maximum and a sample of its pixels."""
    found = [(each.max(), sample_pixels(each[0])[0]) for each in maps]
    scores, pixels = (torch.stack(part).float().cpu().numpy() for part in zip(*found, strict=True))
    return TrainingReport(image_paths, scores, pixels=pixels, contents=contents)
