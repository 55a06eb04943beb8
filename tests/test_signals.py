# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO leaves no thread with a signal stack that has been freed."""

import subprocess
import sys

import pytest

# two cores that overlap, the first one gone first, then a signal for which there is a handler
CORES = """
import gc, signal, numpy, openvino, subprocess, sys
from openvino import opset13
from anomalib_cdd.signals import kept_signal_stack

def network():
    images = opset13.parameter([1, 3, 8, 8], numpy.float32)
    return openvino.Model([opset13.relu(images)], [images])

def use():
    first = openvino.Core().compile_model(network(), "CPU")
    second = openvino.Core().compile_model(network(), "CPU")
    del first
    gc.collect()
    del second
    gc.collect()

signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
with kept_signal_stack():
    use()
subprocess.run([sys.executable, "-c", ""], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO does so on Linux")
def test_a_signal_after_openvino_is_handled() -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CORES], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split()) == (0, ["handled"]), ended.stderr
