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

from anomalib_cdd.training.finite import NotFiniteError
from anomalib_cdd.training.ranks import Ranks

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
GIGABYTE = 2**30
# where Linux keeps memory that processes share, in the shape of files
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # no file there keeps its name


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
        row = FeatureCache.size_of(1, shapes, dtype)
        in_memory = min(count, self.left // row)
        self.left -= in_memory * row
        if in_memory < count:
            if self.on_disk == 0:
                logger.info("Features beyond the memory budget go to %s", self._disk())
            self.on_disk += (count - in_memory) * row
        return FeatureCache(count, shapes, dtype, in_memory=in_memory, budget=self)

    def memory(self) -> list[Path]:
        """Return where a file in memory that ranks share may lie; nothing where one process has memory of its own."""
        return [] if self.ranks.count == 1 else [SHARED_MEMORY, self._disk()]

    def disk(self) -> list[Path]:
        """Return where a file on disk may lie."""
        return [self._disk()]

    def _disk(self) -> Path:
        directory = Path(self.directory or tempfile.gettempdir())
        directory.mkdir(parents=True, exist_ok=True)
        return directory


class FeatureCache:
    """Levels of ``count`` samples, written and read by index: the first samples in memory, the others on disk.

    Args:
        count: Number of samples N.
        shapes: ``(C_l, H_l, W_l)`` of each level.
        dtype: How they are kept. fp16 is right for a trained teacher; an untrained student overflows it: bf16.
        in_memory: How many of the samples are kept in memory; all by default.
        budget: Says where files may lie, and gets the memory back when the cache is released; its ranks share the
            cache. A file has no name: the system frees it with the processes, however they end.

    Raises:
        OSError: If the disk has no room for them; the message says how much is needed.
    """

    def __init__(
        self,
        count: int,
        shapes: Sequence[Sequence[int]],
        dtype: torch.dtype,
        in_memory: int | None = None,
        budget: FeatureBudget | None = None,
    ) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self.size = self.size_of(count, shapes, dtype)
        self._budget = budget
        self._ranks = budget.ranks if budget else Ranks()
        self._split = count if in_memory is None else in_memory
        self._row = self.size_of(1, shapes, dtype)
        memory, disk = (budget.memory(), budget.disk()) if budget else ([], [])
        # in memory, on disk: level by level, so that samples of a level lie as networks and losses want them
        self._stores = [
            self._levels_of(rows, dtype, places)
            for rows, places in ((self._split, memory), (count - self._split, disk))
        ]

    @staticmethod
    def size_of(count: int, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> int:
        """Return the size in bytes."""
        return count * sum(int(torch.Size(shape).numel()) for shape in shapes) * dtype.itemsize

    def _levels_of(self, rows: int, dtype: torch.dtype, places: Sequence[Path]) -> list[Tensor]:
        sizes = [int(torch.Size(shape).numel()) for shape in self.shapes]
        values = self._allocate(rows * sum(sizes), dtype, places)
        return [
            part.view(rows, size) for part, size in zip(values.split([rows * s for s in sizes]), sizes, strict=True)
        ]

    def _allocate(self, values: int, dtype: torch.dtype, places: Sequence[Path]) -> Tensor:
        if not places or values == 0:
            return torch.empty(values, dtype=dtype)
        size = values * dtype.itemsize
        # one rank makes the file and all map it; if it cannot be made, all say so
        file = self._make_file(places, size) if self._ranks.is_first else None
        told = self._ranks.tell(file if file is None or isinstance(file, OSError) else file.name)
        if isinstance(told, OSError):
            raise told
        with file or Path(told).open("r+b") as mapped:
            mapping = mmap.mmap(mapped.fileno(), size)
            self._ranks.wait()
        return torch.frombuffer(mapping, dtype=dtype)

    def _make_file(self, directories: Sequence[Path], size: int) -> Any:  # typeshed has one class a way of opening it
        """Return a file of a size in the first directory that has room, or why there is none."""
        for directory in directories:
            with suppress(OSError):
                return self._reserve(directory, size)
        free = shutil.disk_usage(directories[-1]).free
        return OSError(
            f"No room for the feature cache in {directories[-1]}: {size / MEGABYTE:,.0f} MiB needed, "
            f"{free / MEGABYTE:,.0f} MiB free. Raise `cache_memory_gb`, set `cache_dir` to a larger disk, or set "
            "`cache: false`."
        )

    def _reserve(self, directory: Path, size: int) -> IO[bytes]:
        # without a name from the start a kill at any moment leaves nothing; ranks need one to find it, for a moment
        file = (tempfile.TemporaryFile if self._ranks.count == 1 else tempfile.NamedTemporaryFile)(dir=directory)
        try:
            # a sparse file on a full disk would kill the process with SIGBUS at the first write
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError:
            file.close()
            raise
        return file

    def write(self, indices: Tensor, levels: Sequence[Tensor]) -> None:
        """Keep the levels ``(B, C_l, H_l, W_l)`` of the samples ``indices``.

        Raises:
            NotFiniteError: If a value is not finite, or too large for the cache's precision.
            ValueError: If the levels have other shapes than the first image's.
        """
        if (shapes := [tuple(level.shape[1:]) for level in levels]) != self.shapes:
            msg = (
                f"Features of images of one size are of {self.shapes[0]}, those of others of {shapes[0]}: channels, "
                "height, width. Resize images to one size in the pre-processor."
            )
            raise ValueError(msg)
        for number, level in enumerate(levels):
            # channels last, as networks put them out
            flat = level.detach().permute(0, 2, 3, 1).flatten(1).to(self._stores[0][number].dtype)
            # a norm is the fastest look at every value
            if not torch.linalg.vector_norm(flat, dtype=torch.float32).isfinite():
                msg = f"features are not finite in {str(flat.dtype).removeprefix('torch.')}"
                raise NotFiniteError(msg)
            flat = flat.cpu()
            for store, rows, places in self._places(indices):
                store[number].index_copy_(0, places, flat if rows is None else flat[rows])

    def _places(self, indices: Tensor) -> Iterator[tuple[list[Tensor], Tensor | None, Tensor]]:
        """Yield each store that has some of the samples, which of them (``None``: all), and where they lie in it."""
        early = indices < self._split
        for store, here, first in ((self._stores[0], early, 0), (self._stores[1], ~early, self._split)):
            if here.any():
                rows = None if here.all() else here.nonzero().flatten()
                yield store, rows, (indices if rows is None else indices[rows]) - first

    def read(
        self,
        indices: Tensor,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """Return the levels ``(B, C_l, H_l, W_l)`` of the samples ``indices``, under autocast as they are kept.

        A conversion to fp32 takes longer than all else here, and whoever computes under autocast converts anyway.
        """
        levels = [self._gather(number, indices).to(device) for number in range(len(self.shapes))]
        if not torch.is_autocast_enabled(levels[0].device.type):
            levels = [level.to(dtype) for level in levels]
        return [
            level.view(-1, height, width, channels).permute(0, 3, 1, 2)
            for level, (channels, height, width) in zip(levels, self.shapes, strict=True)
        ]

    def _gather(self, number: int, indices: Tensor) -> Tensor:
        found = list(self._places(indices))
        if len(found) == 1:
            store, _, places = found[0]
            return store[number][places]
        level = self._stores[0][number]
        values = torch.empty(len(indices), level.shape[1], dtype=level.dtype)
        for store, rows, places in found:
            values[rows] = store[number][places]
        return values

    def release(self) -> None:
        """Give memory and disk back."""
        self._stores = []
        if self._budget is not None:
            self._budget.left += self._split * self._row
        self._budget = None


class TeacherFeatures:
    """The training set as the frozen teacher sees it, by sample index.

    Args:
        loader: The training loader; its dataset, batch size, workers and collation are used, not its order.
        extract: Maps a collated batch to the teacher's levels, ``per_image`` samples for each image.
        device: Where the levels are wanted.
        dtype: In which precision.
        dataset: What is read in place of the loader's own data set, such as a part of it.

    Attributes:
        cache: What was read once, or ``None`` where every pass reads the images again.
    """

    def __init__(
        self,
        loader: DataLoader,
        extract: Callable[[Any], list[Tensor]],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        dataset: Dataset | None = None,
    ) -> None:
        self.dataset = loader.dataset if dataset is None else dataset
        self.images = len(cast("Sized", self.dataset))
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
        paths = samples["image_path"] if "image_path" in samples else range(self.images)
        return [str(path) for path in paths]

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
