"""Code in an interpreter of its own, for what a test process would not survive."""

import os
import subprocess
import sys

SETUP = """
import os, sys, signal, threading, time, numpy as np, convkern
x = np.random.default_rng(0).standard_normal((4, 16, 40, 40)).astype(np.float32)
w = np.random.default_rng(1).standard_normal((32, 16, 3, 3)).astype(np.float32)
"""


def run_python(code, timeout=60, before="", **environment):
    """Run code in a fresh interpreter, some of it before any import; return its process."""
    return subprocess.run(
        [sys.executable, "-c", before + SETUP + code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
