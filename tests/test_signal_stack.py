# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO leaves no thread with a signal stack that has been freed."""

import subprocess
import sys
from pathlib import Path

import pytest

# two cores that overlap, the first one gone first, then a signal for which there is a handler
CORES = """
import gc, signal, numpy, openvino, subprocess, sys
from openvino import opset13
from signal_stack import kept_signal_stack

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

with kept_signal_stack():
    use()
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
subprocess.run([sys.executable, "-c", ""], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO does so on Linux")
def test_a_signal_after_openvino_is_handled() -> None:
    command = [sys.executable, "-W", "ignore", "-c", CORES]
    here = Path(__file__).parent  # where `-c` looks for modules
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=here)
    # beside much other work a child may be told of twice
    assert (ended.returncode, set(ended.stdout.split())) == (0, {"handled"}), ended.stderr
