# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m anomalib_cdd`` and ``anomalib-cdd``: anomalib's CLI with this package imported, and three subcommands.

anomalib has no hook for plugins; importing this package before its CLI makes ``--model Cdd``, ``--data MVTecNoisy``
and their place in ``benchmark`` work. ``demo``, ``audit`` and ``fuad`` are added to its subcommands.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from anomalib.cli import AnomalibCLI
from anomalib.data import AnomalibDataModule
from anomalib.loggers import configure_logger
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader

import anomalib_cdd  # registers its classes with anomalib
from anomalib_cdd.data.clean import Cleaning
from anomalib_cdd.training.compat import SubcommandHooks

logger = logging.getLogger(__name__)
Made = TypeVar("Made")

SUBCOMMANDS = {
    "demo": "Train on solar cells with defective ones among them, and show what was learned.",
    "audit": "Rank the images of a folder by how suspicious they are, without training or by a model, on a page.",
    "fuad": "Compare models on training data that is not clean: models x data x noise ratios x seeds.",
}


class CddCLI(SubcommandHooks, AnomalibCLI):
    """anomalib's CLI with ``demo``, ``audit`` and ``fuad``."""

    def add_own_subcommands(self, action: Any) -> None:
        """Add ours to anomalib's."""
        from anomalib_cdd.cli import audit, demo, fuad

        for name, module in (("demo", demo), ("audit", audit), ("fuad", fuad)):
            self.subcommand_parsers[name] = module.get_parser()
            action.add_subcommand(name, self.subcommand_parsers[name], help=SUBCOMMANDS[name])
            self.subcommand_parsers[name].prog = f"anomalib-cdd {name}"  # anomalib's own has no name

    def before_instantiate_classes(self) -> None:
        """Seed every random number before anything is made: anomalib takes ``--seed_everything`` and never reads it.

        ``true``, its default, is a random seed and so is left alone.
        """
        super().before_instantiate_classes()
        seed = self.config[self.config["subcommand"]].get("seed_everything", True)
        if not isinstance(seed, bool):
            seed_everything(seed, workers=True)
        # jsonargparse wraps what a constructor raises in what it expected of each type
        for parser in self.subcommand_parsers.values():
            for kind in (AnomalibModule, AnomalibDataModule, Cleaning):
                parser.add_instantiator(_made, kind)

    def instantiate_classes(self) -> None:
        """Let ``predict --data PATH`` take any path, and read its images as the model's training set was read."""
        super().instantiate_classes()
        if self.config["subcommand"] == "predict" and isinstance(self.datamodule, str | Path):
            try:
                images = anomalib_cdd.data.PredictImages(self.datamodule)
            except (OSError, ValueError) as error:
                sys.exit(f"error: {error}")
            self.datamodule = DataLoader(images, collate_fn=images.collate_fn, pin_memory=True)

    def before_subcommand(self) -> None:
        """Ready anomalib's own ``benchmark``."""
        if self.config["subcommand"] == "benchmark":
            let_benchmark_rows_differ()

    def around_subcommand(self) -> AbstractContextManager[None]:
        """Show this package's own refusals in one line, of anomalib's subcommands too."""
        return _plain_refusals()

    def demo(self) -> None:
        """Run the demo; anomalib's CLI calls a subcommand that it does not know by its name."""
        from anomalib_cdd.cli import demo as command

        try:
            with _plain_errors():
                command.run(self.config["demo"])
        except KeyboardInterrupt:
            print("\nstopped; the same command begins anew", file=sys.stderr)
            sys.exit(130)

    def audit(self) -> None:
        """Audit a folder."""
        from anomalib_cdd.cli import audit as command

        with _plain_errors():
            command.run(self.config["audit"])

    def fuad(self) -> None:
        """Run the comparison grid, with exit status 1 if a cell failed and 130, the shell's, at Ctrl-C."""
        from anomalib_cdd.cli import fuad as command

        try:
            with _plain_errors():
                failed = command.run(self.config["fuad"])
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on with the cells that are not finished", file=sys.stderr)
            sys.exit(130)
        if failed:
            sys.exit(1)


def let_benchmark_rows_differ() -> None:
    """Let models with different arguments stand in one table: anomalib's own collection takes the first one's columns.

    A column that a model does not have is empty in its row.
    """
    import pandas as pd
    from anomalib.pipelines.benchmark.job import BenchmarkJob

    BenchmarkJob.collect = staticmethod(pd.DataFrame)  # type: ignore[method-assign, assignment]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show what the user can mend as one line."""
    from anomalib_cdd.cli.entries import ConfigError

    try:
        yield
    except (ConfigError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


@contextmanager
def _plain_refusals() -> Iterator[None]:
    """Show what this package refuses as one line; where it comes from is in the log, for who asks for DEBUG."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is None or not Path(frame.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent):
            raise
        logger.debug("refused", exc_info=True)
        sys.exit(f"error: {error}")


def _made(class_type: type[Made], *args: Any, **kwargs: Any) -> Made:
    """Make a model or a data set; what its arguments are refused for is one line."""
    with _plain_refusals():
        return class_type(*args, **kwargs)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; those of the process by default.
    """
    configure_logger()
    CddCLI(args=argv)


if __name__ == "__main__":
    main()
