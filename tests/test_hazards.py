"""What signals, limits, forks, other libraries and settings may do to a running kernel."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import convkern
from convkern import functional, threads

from .interpreter import run_python

# ---------------------------------------------------------------- Ctrl-C

#: Calls of seconds, most of them on images that share their memory: what is made before, and then.
LONG_CALLS = {
    "conv2d": ("w(2048, 256, 3)", "convkern.conv2d(images(1, 256, 512), it, padding=1)"),
    "direct": ("w(1024, 256, 3)", "convkern.conv2d(images(9, 256, 256), it, algorithm='direct')"),
    "planes": (
        "np.ones((3000, 64, 14, 14), np.float32)",
        "convkern.conv2d(it, w(512, 64, 5), algorithm='direct')",
    ),
    "a few at a time": (
        "np.ones((8000, 64, 14, 14), np.float32)",
        "convkern.conv2d(it, w(512, 64, 5))",
    ),
    "depthwise": ("w(64, 1, 7)", "convkern.conv2d(images(40000, 64, 64), it, None, 8, groups=64)"),
    "winograd": ("w(512, 64, 3)", "convkern.conv2d(images(400, 64, 64), it, algorithm='winograd')"),
    "backward": (
        "w(512, 64, 3)",
        "convkern.conv2d_backward(images(400, 512, 62), images(400, 64, 64), it)",
    ),
    "backward direct": (
        "w(512, 64, 3)",
        "convkern.conv2d_backward(images(400, 512, 62), images(400, 64, 64), it,"
        " algorithm='direct')",
    ),
    "max_pool2d": ("images(200000, 64, 64)", "convkern.max_pool2d(it, 9, 8)"),
    "avg_pool2d": ("images(200000, 64, 64)", "convkern.avg_pool2d(it, 9, 8)"),
    "linear": (
        "np.ones((20000, 2048), np.float32)",
        "convkern.linear(it, np.ones((8192, 2048), np.float32))",
    ),
    "plan": (
        "convkern.freeze(nn.Sequential(nn.Conv2d(64, 512, 3), nn.ReLU(), nn.MaxPool2d(2)))",
        "it(images(400, 64, 112))",
    ),
}

INTERRUPT = """
from convkern import nn
def images(n, channels, size):
    one = np.ones((1, size, size, channels), np.float32).transpose(0, 3, 1, 2)
    return np.broadcast_to(one, (n, *one.shape[1:]))
def w(filters, channels, size):
    return np.ones((filters, channels, size, size), np.float32)
it = {it}
def interrupt():
    moment.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
moment = []
threading.Timer(0.5, interrupt).start()
try:
    {call}
    os._exit(0)
except KeyboardInterrupt:
    print(time.monotonic() - moment[0])
# What was interrupted has left nothing behind.
assert (convkern.conv2d(x, w(32, 16, 3)) == convkern.conv2d(x, w(32, 16, 3))).all()
"""


@pytest.mark.parametrize("name", LONG_CALLS)
def test_interrupt_in_a_long_call(name):
    """Ctrl-C takes effect within 200 ms; a busy machine gets a few tries."""
    it, call = LONG_CALLS[name]
    delays = []
    for _ in range(4):
        done = run_python(INTERRUPT.format(it=it, call=call))
        assert done.returncode == 0, done.stderr
        assert done.stdout, "the call ended before the interrupt"
        delays.append(float(done.stdout))
        if delays[-1] < 0.2:
            return
    pytest.fail(f"interrupted after {delays} s")
