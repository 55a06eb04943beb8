# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers that are not finite end a training, with a message that says where and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class NotFiniteError(ValueError):
    """Numbers are NaN or infinite; the message says which and what to do."""


class StopsWhenNotFinite:
    """Mixin before ``AnomalibModule``.

    Attributes:
        advice: What to do, for the message.
    """

    advice = "Try a lower learning_rate."

    @contextmanager
    def finite(self, stage: str) -> Iterator[None]:
        """Say in which stage of which epoch numbers stopped being finite, and what to do.

        Raises:
            NotFiniteError: In place of another one.
        """
        try:
            yield
        except NotFiniteError as error:
            epoch = self.trainer.current_epoch  # type: ignore[attr-defined]
            msg = (
                f"Training diverged in epoch {epoch} (the first is 0), {stage}: {error}. The last checkpoint is of an "
                f"epoch before. {self.advice}"
            )
            raise NotFiniteError(msg) from error


def check_finite(**values: Tensor) -> None:
    """Refuse what is not finite.

    Raises:
        NotFiniteError: Naming the first such value.
    """
    for name, value in values.items():
        if not value.isfinite().all():
            msg = f"{name} is {value.item()}" if value.numel() == 1 else f"{name} is not finite"
            raise NotFiniteError(msg)
