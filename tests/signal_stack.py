# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Where signals are handled: OpenVINO, run twice at once, would leave the tests a stack that is gone."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's ``stack_t``."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Leave this thread with the alternate signal stack that it came with.

    OpenVINO's plugin for processors installs one of its own for each core and puts back what was there when the core
    goes. Where two cores overlap, the second puts back the first one's, which is freed by then, and the next signal
    ends the process without a word: the end of a loader's worker is enough. On systems other than Linux OpenVINO
    does no such thing.
    """
    if sys.platform != "linux":
        yield
        return
    call, kept = ctypes.CDLL(None).sigaltstack, _Stack()
    call(None, ctypes.byref(kept))
    try:
        yield
    finally:
        call(ctypes.byref(kept), None)
