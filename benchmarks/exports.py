# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a trained model's exports say what Lightning says, on image files of any size.

``python -m benchmarks.exports CKPT IMAGES [--model Cdd] [--size WIDTH HEIGHT] [--limit N]`` predicts every image file
below IMAGES with anomalib's engine, in torch, onnxruntime and OpenVINO, and prints the largest difference in score and
how many labels differ. With ``--size`` the images are resized to that first, as photographs of it would be; with
``--output`` the rows are added to a CSV file.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from anomalib_cdd.benchmark.revision import commit
from anomalib_cdd.training.image_files import image_files
from anomalib_cdd.training.reading import read_image
from anomalib_cdd.version import __version__

Said = tuple[NDArray[Any], NDArray[Any]]  # scores and labels


def prepare(images: Path, folder: Path, size: Sequence[int] | None, limit: int) -> list[Path]:
    """Write the images as PNG, at the size that is asked for."""
    files = image_files(images)[:limit]
    for number, path in enumerate(tqdm(files, desc="images", leave=False)):
        image = Image.open(path).convert("RGB")
        image = image.resize(tuple(size), Image.Resampling.BICUBIC) if size else image
        image.save(folder / f"{number:05}.png", compress_level=1)
    return sorted(folder.iterdir())


def by_lightning(model: Any, folder: Path, scratch: Path) -> Said:
    """Return what ``Engine.predict`` says of a folder, in the order of names."""
    engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=scratch)
    batches = engine.predict(model, data_path=folder, return_predictions=True) or []
    said = {
        Path(path).name: (float(score), bool(label))
        for batch in batches
        for path, score, label in zip(batch.image_path, batch.pred_score, batch.pred_label, strict=True)
    }
    return _said([said[name] for name in sorted(said)])


def by_export(infer: Callable[[torch.Tensor], tuple[Any, Any]], files: list[Path], name: str) -> Said:
    """Return what an export says of each file."""
    said = [infer(read_image(path)[None]) for path in tqdm(files, desc=name, leave=False)]
    return _said([(float(np.ravel(score)[0]), bool(np.ravel(label)[0])) for score, label in said])


def _said(pairs: list[tuple[float, bool]]) -> Said:
    return np.array([score for score, _ in pairs]), np.array([label for _, label in pairs])


def exports(model: Any, scratch: Path) -> dict[str, Callable[[torch.Tensor], tuple[Any, Any]]]:
    """Export a model and return the inference of each form."""
    import onnxruntime
    import openvino

    loaded = torch.load(model.to_torch(scratch / "torch"), weights_only=False)["model"].eval()  # written just now
    session = onnxruntime.InferenceSession(model.to_onnx(scratch / "onnx"))
    names = [output.name for output in session.get_outputs()]
    network = openvino.Core().read_model(model.to_openvino(scratch / "openvino"))
    fp32 = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    choice = openvino.compile_model(network, "CPU")

    def in_torch(image: torch.Tensor) -> tuple[Any, Any]:
        with torch.inference_mode():
            said = loaded(image)
        return said.pred_score, said.pred_label

    def in_onnx(image: torch.Tensor) -> tuple[Any, Any]:
        said = dict(zip(names, session.run(None, {session.get_inputs()[0].name: image.numpy()}), strict=True))
        return said["pred_score"], said["pred_label"]

    def in_openvino(compiled: Any) -> Callable[[torch.Tensor], tuple[Any, Any]]:
        def infer(image: torch.Tensor) -> tuple[Any, Any]:
            said = compiled(image.numpy())
            return said["pred_score"], said["pred_label"]

        return infer

    return {
        "torch": in_torch,
        "onnxruntime": in_onnx,
        "OpenVINO, fp32": in_openvino(fp32),
        "OpenVINO, its choice": in_openvino(choice),
    }


def main(arguments: list[str] | None = None) -> int:
    """Compare a checkpoint's exports with Lightning; return 1 where a label differs in fp32."""
    parser = argparse.ArgumentParser("python -m benchmarks.exports", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a model.ckpt")
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--model", default="Cdd", help="its class; default: Cdd")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: as the files are")
    parser.add_argument("--limit", type=int, help="how many images; default: all")
    parser.add_argument("--output", type=Path, help="a CSV file to which the rows are added")
    options = parser.parse_args(arguments)
    model = type(get_model(options.model, pre_trained=False)).load_from_checkpoint(options.checkpoint).eval()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch, images = Path(folder), Path(folder, "images")
        images.mkdir()
        files = prepare(options.images, images, options.size, options.limit)
        if not files:
            parser.error(f"there are no images in {options.images}")
        scores, labels = by_lightning(model, images, scratch / "predict")
        for name, infer in exports(model, scratch).items():
            said, labelled = by_export(infer, files, name)
            row: dict[str, Any] = {"model": options.model, "size": "x".join(map(str, options.size or ["as it is"]))}
            row |= {"form": name, "images": len(files), "largest_difference": f"{np.abs(said - scores).max():.1e}"}
            row |= {"labels_that_differ": int((labelled != labels).sum())}
            rows.append(row | {"anomalib_cdd": __version__, "commit": commit()})
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False))
    if options.output:
        table.to_csv(options.output, mode="a", index=False, header=not options.output.exists())
    faithful = table[table["form"] != "OpenVINO, its choice"]
    return int(faithful["labels_that_differ"].any())


if __name__ == "__main__":
    sys.exit(main())
