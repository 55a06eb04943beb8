# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Every model's heat maps of the same test images, side by side (the paper's Fig. 5).

A model may resize an image and crop its middle. Its map is drawn where it lies on the resized image, so that maps of
different crops share one frame, and the image beside them shows no more than the models saw.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from anomalib_cdd.training.reading import read_for_display
from anomalib_cdd.training.visualization import crop_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from .plots import Style
    from .scores import Arrays

# a normal image stays dark and a strong response saturates
COLOUR_QUANTILES = (0.5, 0.999)
COLOUR_MAP = "inferno"
OUTLINE = "#00E5FF"
NAME_LENGTH = 20


class Frame(NamedTuple):
    """Where a map lies on its image: edges in [0, 1] of the image's width and height."""

    left: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    top: float = 0.0


class Shown(NamedTuple):
    """One model's examples by their names: paths, maps, true masks and labels; and the ends of its colour scale."""

    paths: dict[str, str]
    maps: dict[str, NDArray[np.float32]]
    masks: dict[str, NDArray[np.bool_]]
    labels: dict[str, int]
    scale: tuple[float, float]


def heat_maps(arrays: Mapping[str, Arrays], configs: Mapping[str, dict], look: Mapping[str, Style]) -> Figure:
    """Draw a row per example image: the image, then each model's heat map; the true mask, if any, as an outline.

    Args:
        arrays: What a cell of each model has kept, see :func:`.scores.cell_scores`; with ``example_maps``.
        configs: Each model's ``class_path`` and ``init_args``.
        look: How each model is drawn.
    """
    shown = {model: _shown(kept) for model, kept in arrays.items()}
    # by name: the images may have been elsewhere when another model's cell ran
    names = list(dict.fromkeys(name for examples in shown.values() for name in examples.maps))
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(1.6 * (len(shown) + 1) + 0.5, 1.62 * len(names) + 0.4), layout=layout)
    axes = figure.subplots(len(names), len(shown) + 1, squeeze=False)
    for name, row in zip(names, axes, strict=True):
        holders = [model for model, examples in shown.items() if name in examples.maps]
        photo = _photo([Path(shown[model].paths[name]) for model in holders])
        size = (photo.height, photo.width) if photo else None
        frames = {model: frame_of(configs[model], size) for model in shown}
        _image(row[0], name, photo, shown[holders[0]], frames[holders[0]])
        for (model, examples), panel in zip(shown.items(), row[1:], strict=True):
            if name in examples.maps:
                panel.imshow(
                    examples.maps[name],
                    cmap=COLOUR_MAP,
                    vmin=examples.scale[0],
                    vmax=examples.scale[1],
                    extent=frames[model],
                    aspect="auto",
                )
                _outline(panel, name, examples, frames[model])
        for panel in row:
            _crop(panel, list(frames.values()))
    axes[0, 0].set_title("image", fontsize=10)
    for model, panel in zip(shown, axes[0, 1:], strict=True):
        panel.set_title(model, color=look[model].colour, fontweight="bold", fontsize=10)
    return figure


def _shown(kept: Arrays) -> Shown:
    paths, maps = kept["example_paths"].tolist(), kept["example_maps"].astype(np.float32)
    names = kept["example_names"].tolist()
    masks = dict(zip(names, kept["example_masks"], strict=True)) if "example_masks" in kept else {}
    low, high = np.quantile(maps[np.isfinite(maps)], COLOUR_QUANTILES)
    labels = dict(zip(names, kept["example_labels"].tolist(), strict=True))
    path_of, map_of = dict(zip(names, paths, strict=True)), dict(zip(names, maps, strict=True))
    return Shown(path_of, map_of, masks, labels, (float(low), float(high)))


def frame_of(config: dict[str, Any], size: tuple[int, int] | None = None) -> Frame:
    """Return what part of an image a model sees: the crop of its pre-processing, or else the whole image.

    Args:
        config: The model's ``class_path`` and ``init_args``, with every default.
        size: Height and width of the image, where they are known.
    """
    margins, resized = crop_of(Compose(steps) if (steps := _steps(config)) else None, size)
    if not any(margins):
        return Frame()
    height, width = resized
    return Frame(margins.left / width, 1 - margins.right / width, 1 - margins.bottom / height, margins.top / height)


def _steps(config: dict[str, Any]) -> list[Any]:
    """Return the resizing and cropping steps of a model's pre-processor, be it written out or the model's default."""
    pre_processor = config.get("init_args", {}).get("pre_processor")
    if pre_processor is True:
        module, _, name = config["class_path"].rpartition(".")
        transform = getattr(import_module(module), name).configure_pre_processor().transform
        return list(transform.transforms) if isinstance(transform, Compose) else [transform]
    if not isinstance(pre_processor, dict):
        return []
    transform = pre_processor.get("init_args", {}).get("transform") or {}
    entries = transform.get("init_args", {}).get("transforms", [transform])
    known = {"Resize": Resize, "CenterCrop": CenterCrop, "ExportableCenterCrop": CenterCrop}
    classes = [(known.get(entry.get("class_path", "").rpartition(".")[2]), entry) for entry in entries]
    return [cls(entry["init_args"]["size"]) for cls, entry in classes if cls is not None]


def _image(panel: Axes, name: str, photo: Image.Image | None, examples: Shown, frame: Frame) -> None:
    label = {0: "normal", 1: "anomalous"}.get(examples.labels[name], "unknown")
    file = Path(name).name
    panel.set_ylabel(f"{label}\n{file if len(file) <= NAME_LENGTH else '…' + file[-NAME_LENGTH:]}", fontsize=7)
    if photo is None:
        panel.text(0.5, 0.5, "image\nnot found", ha="center", va="center", fontsize=8, color="#555555")
        return
    height, width = examples.maps[name].shape
    panel.imshow(photo.resize((2 * width, 2 * height)), extent=Frame(), aspect="auto")
    _outline(panel, name, examples, frame)


def _photo(paths: Iterable[Path]) -> Image.Image | None:
    """Read the first of an image's files that is there."""
    there = next((path for path in paths if path.is_file()), None)
    try:
        return None if there is None else read_for_display(there)
    except (OSError, ValueError):
        return None


def _outline(panel: Axes, name: str, examples: Shown, frame: Frame) -> None:
    mask = examples.masks.get(name)
    if mask is None or not mask.any() or mask.all():
        return
    height, width = mask.shape
    columns = np.linspace(frame.left, frame.right, 2 * width + 1)[1::2]
    rows = np.linspace(frame.top, frame.bottom, 2 * height + 1)[1::2]
    panel.contour(columns, rows, mask.astype(float), [0.5], colors=OUTLINE, linewidths=0.8)


def _crop(panel: Axes, frames: list[Frame]) -> None:
    """Show what any of the models sees."""
    panel.set_xlim(min(frame.left for frame in frames), max(frame.right for frame in frames))
    panel.set_ylim(max(frame.bottom for frame in frames), min(frame.top for frame in frames))
    panel.set_box_aspect(1)
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
