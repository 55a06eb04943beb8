# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A grid's folder has one driver, the process that writes it: a second one is refused while the first one lives."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has none: there a second driver is not noticed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".driver"


class GridError(RuntimeError):
    """A grid cannot run as it is asked to; the message is one line and says why."""


@contextmanager
def sole_driver(output: Path) -> Iterator[None]:
    """Be the one process that writes a folder of results; a killed one leaves no lock behind.

    Args:
        output: The folder. It is made if need be.

    Raises:
        GridError: If another process is writing it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("a+", encoding="utf-8") as file:
        if not locked(file):
            file.seek(0)
            msg = (
                f"{output} is being written by another run, {file.read().strip() or 'unknown'}. "
                "Wait for its end, or choose another --output."
            )
            raise GridError(msg)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def locked(file: IO[str], wait: bool = False) -> bool:
    """Lock a file for this process, until it is closed; children do not inherit the lock.

    Args:
        file: Open for writing.
        wait: Whether to wait for another process that has it.

    Returns:
        Whether this process has it now; also where the file system knows no locks, with a warning.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    except OSError as error:
        logger.warning("%s cannot be locked (%s): run one grid at a time in its folder.", file.name, error)
    return True
