# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Feature maps by sample index, kept in memory while they fit a budget and on disk beyond it.

What the frozen teacher said of each training image is worth keeping: it never changes. The ranks of a training share
one cache. Knows no method.
"""

import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from anomalib_cdd.training.ranks import Ranks

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
GIGABYTE = 2**30
# where Linux keeps memory that processes share, in the shape of files
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # no file there keeps its name


class NotFiniteError(ValueError):
    """Numbers are NaN or infinite; the message says which and what to do."""


class FeatureBudget:
    """Hands out feature caches until the memory budget is used up, then disk-backed ones.

    Args:
        memory_gb: Memory for all caches together, in GiB; 0 puts everything on disk.
        directory: Where the disk-backed ones go; ``None`` takes the system's temporary folder.
        ranks: Who shares the caches.

    Attributes:
        left: Bytes of memory left, of all ranks together.
        on_disk: Bytes handed out on disk so far.

    Raises:
        ValueError: If the budget is negative.
    """

    def __init__(self, memory_gb: float, directory: str | Path | None = None, ranks: Ranks | None = None) -> None:
        if not memory_gb >= 0:
            msg = f"The cache's memory budget is {memory_gb} GiB; it has to be 0 or more."
            raise ValueError(msg)
        self.left = int(memory_gb * GIGABYTE)
        self.directory = directory
        self.ranks = ranks or Ranks()
        self.on_disk = 0

    def cache(self, count: int, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> "FeatureCache":
        """Make a cache for ``count`` samples with levels of the given ``(C, H, W)`` shapes."""
        size = FeatureCache.size_of(count, shapes, dtype)
        in_memory = size <= self.left
        if in_memory:
            self.left -= size
            directories = [] if self.ranks.count == 1 else [SHARED_MEMORY, self._disk()]
        else:
            directories = [self._disk()]
            if self.on_disk == 0:
                logger.info("Features beyond the memory budget go to %s", directories[0])
            self.on_disk += size
        return FeatureCache(count, shapes, dtype, budget=self, directories=directories)

    def _disk(self) -> Path:
        directory = Path(self.directory or tempfile.gettempdir())
        directory.mkdir(parents=True, exist_ok=True)
        return directory


class FeatureCache:
    """Levels of ``count`` samples, written and read by index.

    Args:
        count: Number of samples N.
        shapes: ``(C_l, H_l, W_l)`` of each level.
        dtype: How they are kept. fp16 is right for a trained teacher; an untrained student overflows it: bf16.
        budget: Gets the memory back when the cache is released; its ranks share the cache.
        directories: Where the memory-mapped file that holds the values may lie; the first with room has it. None keeps
            them in the process's own memory. The file has no name: the system frees it with the
            processes, however they end, and nobody else can read it.

    Raises:
        OSError: If the disk has no room for them; the message says how much is needed.
    """

    def __init__(
        self,
        count: int,
        shapes: Sequence[Sequence[int]],
        dtype: torch.dtype,
        budget: FeatureBudget | None = None,
        directories: Sequence[Path] = (),
    ) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self.size = self.size_of(count, shapes, dtype)
        self._budget = budget
        self._ranks = budget.ranks if budget else Ranks()
        self._in_memory = not directories or directories[0] == SHARED_MEMORY
        sizes = [int(torch.Size(shape).numel()) for shape in self.shapes]
        values = self._allocate(count * sum(sizes), dtype, directories)
        # level by level, so that samples of a level lie as networks and losses want them, without a copy
        parts = values.split([count * size for size in sizes])
        self._levels = [part.view(count, size) for part, size in zip(parts, sizes, strict=True)]

    @staticmethod
    def size_of(count: int, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> int:
        """Return the size in bytes."""
        return count * sum(int(torch.Size(shape).numel()) for shape in shapes) * dtype.itemsize

    def _allocate(self, count: int, dtype: torch.dtype, directories: Sequence[Path]) -> Tensor:
        if not directories or count == 0:
            return torch.empty(count, dtype=dtype)
        # one rank makes the file and all map it; if it cannot be made, all say so
        file = self._make_file(directories) if self._ranks.is_first else None
        told = self._ranks.tell(file if file is None or isinstance(file, OSError) else file.name)
        if isinstance(told, OSError):
            raise told
        with file or Path(told).open("r+b") as mapped:
            values = mmap.mmap(mapped.fileno(), self.size)
            self._ranks.wait()
        return torch.frombuffer(values, dtype=dtype)

    def _make_file(self, directories: Sequence[Path]) -> Any:  # a file; typeshed has one class a way of opening it
        """Return a file of the cache's size in the first directory that has room, or why there is none."""
        for directory in directories:
            with suppress(OSError):
                return self._reserve(directory)
        free = shutil.disk_usage(directories[-1]).free
        return OSError(
            f"No room for the feature cache in {directories[-1]}: {self.size / MEGABYTE:,.0f} MiB needed, "
            f"{free / MEGABYTE:,.0f} MiB free. Raise `cache_memory_gb`, set `cache_dir` to a larger disk, or set "
            "`cache: off`."
        )

    def _reserve(self, directory: Path) -> IO[bytes]:
        # without a name from the start a kill at any moment leaves nothing; ranks need one to find it, for a moment
        file = (tempfile.TemporaryFile if self._ranks.count == 1 else tempfile.NamedTemporaryFile)(dir=directory)
        try:
            # a sparse file on a full disk would kill the process with SIGBUS at the first write
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.size)
            else:
                file.truncate(self.size)
        except OSError:
            file.close()
            raise
        return file

    def write(self, indices: Tensor, levels: Sequence[Tensor]) -> None:
        """Keep the levels ``(B, C_l, H_l, W_l)`` of the samples ``indices``.

        Raises:
            NotFiniteError: If a value is not finite, or too large for the cache's precision.
        """
        for kept, level in zip(self._levels, levels, strict=True):
            # channels last, as networks put them out
            flat = level.detach().permute(0, 2, 3, 1).flatten(1).to(kept.dtype)
            # a norm is the fastest look at every value
            if not torch.linalg.vector_norm(flat, dtype=torch.float32).isfinite():
                msg = f"features are not finite in {str(flat.dtype).removeprefix('torch.')}"
                raise NotFiniteError(msg)
            kept.index_copy_(0, indices, flat.cpu())

    def read(
        self,
        indices: Tensor,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Return the levels ``(B, C_l, H_l, W_l)`` of the samples ``indices``, under autocast as they are kept.

        A conversion to fp32 takes longer than all else here, and whoever computes under autocast converts anyway.
        """
        levels = [kept[indices].to(device) for kept in self._levels]
        if not torch.is_autocast_enabled(levels[0].device.type):
            levels = [level.to(dtype) for level in levels]
        return [
            level.view(-1, height, width, channels).permute(0, 3, 1, 2)
            for level, (channels, height, width) in zip(levels, self.shapes, strict=True)
        ]

    def release(self) -> None:
        """Give memory or disk back."""
        self._levels = []
        if self._in_memory and self._budget is not None:
            self._budget.left += self.size
        self._budget = None


class TeacherFeatures:
    """The training set as the frozen teacher sees it, by sample index.

    Args:
        loader: The training loader; its dataset, batch size, workers and collation are used, not its order.
        extract: Maps a collated batch to the teacher's levels, ``per_image`` samples for each image.
        device: Where the levels are wanted.
        dtype: In which precision.

    Attributes:
        cache: What was read once, or ``None`` where every pass reads the images again.
    """

    def __init__(
        self,
        loader: DataLoader,
        extract: Callable[[Any], list[Tensor]],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dataset: Dataset = loader.dataset
        self.images = len(cast("Sized", loader.dataset))
        self.batch_size = loader.batch_size or 1
        self.cache: FeatureCache | None = None
        self.per_image = 1
        self._loader = loader
        self._extract = extract
        self._device = device
        self._dtype = dtype
        self.shapes = self._probe()

    def __len__(self) -> int:
        """Return the number of samples: images, or tiles of images."""
        return self.images * self.per_image

    @property
    def image_paths(self) -> list[str]:
        """Paths of the images, or their numbers where the data set does not tell."""
        samples: Any = getattr(self.dataset, "samples", ())
        return [str(path) for path in (samples["image_path"] if "image_path" in samples else range(self.images))]

    def _probe(self) -> list[torch.Size]:
        levels = self._extract(self._loader.collate_fn([self.dataset[0]]))
        self.per_image = len(levels[0])
        return [level.shape[1:] for level in levels]

    def fill(self, budget: FeatureBudget) -> None:
        """Read every image once and keep its levels in fp16; of several ranks each reads its part."""
        ranks = budget.ranks
        self.cache = cache = budget.cache(len(self), self.shapes, torch.float16)
        images = ranks.portion(torch.arange(self.images)).split(self.batch_size)
        bar: Any = {"desc": "Teacher features", "leave": False, "disable": not ranks.is_first}
        for indices, levels in zip(images, tqdm(self._read_images(images), total=len(images), **bar), strict=True):
            cache.write(self._samples(indices), levels)
        ranks.wait()

    def iterate(self, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield the levels ``(B, C_l, H_l, W_l)`` of each batch of sample indices; see :meth:`FeatureCache.read`."""
        if self.cache is not None:
            for indices in batches:
                yield self.cache.read(indices, self._device, self._dtype)
        elif self.per_image == 1:
            yield from self._read_images(batches)
        else:
            # a batch of tiles: read the images that they come from, then pick
            images = [torch.unique(indices // self.per_image) for indices in batches]
            for indices, read, levels in zip(batches, images, self._read_images(images), strict=True):
                place = torch.searchsorted(self._samples(read), indices)
                yield [level[place.to(level.device)] for level in levels]

    def _samples(self, images: Tensor) -> Tensor:
        """Return the sample indices of images: their tiles."""
        return (images[:, None] * self.per_image + torch.arange(self.per_image)).flatten()

    def _read_images(self, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self._loader.num_workers,
            collate_fn=self._loader.collate_fn,
        )
        for images, batch in zip(batches, loader, strict=True):
            levels = self._extract(batch)
            self._check_finite(images, levels)
            yield levels

    def _check_finite(self, images: Tensor, levels: Sequence[Tensor]) -> None:
        """Refuse what the teacher says of an image where it is no finite number in the precision that is kept."""
        kept = torch.float16 if self.cache is not None else self._dtype
        norms = [torch.linalg.vector_norm(level.to(kept), dim=(1, 2, 3), dtype=torch.float32) for level in levels]
        finite = torch.stack(norms).isfinite().all(dim=0).view(-1, self.per_image).all(dim=1)
        if finite.all():
            return
        paths = self.image_paths
        wrong = [paths[image] for image in images[~finite.cpu()].tolist()]
        msg = (
            f"The teacher's features are not finite in {str(kept).removeprefix('torch.')} for {', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} others of the batch' if len(wrong) > 3 else ''}. If that is so for every image "
            "the weights or the normalisation are not the teacher's; else replace or remove the image."
        )
        raise NotFiniteError(msg)
