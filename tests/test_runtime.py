"""Threads, processes, signals, the floating-point environment and the choice of kernels."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import convkern
from convkern import threads

from .interpreter import run_python

X = np.random.default_rng(0).standard_normal((4, 16, 40, 40)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((32, 16, 3, 3)).astype(np.float32)


# ---------------------------------------------------------------- thread counts


def test_num_threads_is_local_and_nests():
    before = convkern.get_num_threads()
    with convkern.num_threads(3):
        with convkern.num_threads(2):
            assert convkern.get_num_threads() == 2
        assert convkern.get_num_threads() == 3
        seen = []
        other = threading.Thread(target=lambda: seen.append(convkern.get_num_threads()))
        other.start()
        other.join()
        assert seen == [before]
    assert convkern.get_num_threads() == before
    context = convkern.num_threads(2)
    with context, context:
        assert convkern.get_num_threads() == 2
    assert convkern.get_num_threads() == before


@pytest.mark.parametrize("n", [0, -1, 10**9, 2**70])
def test_bad_thread_counts(n):
    with pytest.raises(ValueError, match="number of threads must be"):
        convkern.set_num_threads(n)
    with pytest.raises(ValueError, match="number of threads must be"):
        convkern.num_threads(n)


@pytest.mark.parametrize("n", [True, 1.0, "2", None])
def test_thread_counts_are_integers(n):
    with pytest.raises(TypeError, match="number of threads must be an integer"):
        convkern.set_num_threads(n)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CONVKERN_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "abc"}, None),
        ({"OMP_NUM_THREADS": "-4"}, None),
        ({"OMP_NUM_THREADS": "10000"}, 1024),
    ],
)
def test_thread_count_from_the_environment(monkeypatch, environment, expected):
    for name in ("CONVKERN_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert threads._from_environment() == expected
    assert 1 <= threads._available_processors() <= (os.cpu_count() or 1)


# ---------------------------------------------------------------- instruction sets


def test_isa_can_be_forced():
    code = "print(convkern.show_config('dicts')['instruction_set'])"
    for isa in convkern.show_config("dicts")["instruction_sets_available"]:
        assert run_python(code, CONVKERN_ISA=isa).stdout.strip() == isa


def test_unknown_isa_is_an_error_at_import():
    done = run_python("", CONVKERN_ISA="avx3")
    assert done.returncode != 0
    assert "CONVKERN_ISA='avx3' is not in this build; accepted here: baseline" in done.stderr


def test_show_config(capsys):
    convkern.show_config()
    assert "instruction set" in capsys.readouterr().out
    json.dumps(convkern.show_config("dicts"))
    with pytest.raises(ValueError, match="mode must be"):
        convkern.show_config("xml")


# ---------------------------------------------------------------- concurrency


def test_many_callers_at_once():
    expected = convkern.conv2d(X, W)
    pooled = convkern.max_pool2d(X, 3, return_indices=True)
    wrong = []

    def work():
        for _ in range(20):
            if convkern.conv2d(X, W).tobytes() != expected.tobytes():
                wrong.append("conv2d")
            for got, wanted in zip(
                convkern.max_pool2d(X, 3, return_indices=True), pooled, strict=True
            ):
                if got.tobytes() != wanted.tobytes():
                    wrong.append("max_pool2d")

    workers = [threading.Thread(target=work) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


FORK = """
convkern.set_num_threads(2)
expected = convkern.conv2d(x, w)
def child():
    assert convkern.get_num_threads() == 1
    assert (convkern.conv2d(x, w) == expected).all()
stop = False
def busy():
    while not stop:
        convkern.conv2d(x, w)
worker = threading.Thread(target=busy)
worker.start()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        try:
            child()
            inner = os.fork()
            if inner == 0:
                child()
                os._exit(0)
            os._exit(os.waitpid(inner, 0)[1])
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
stop = True
worker.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_and_during_a_kernel():
    done = run_python(FORK, PYTHONWARNINGS="ignore")
    assert done.stdout == "done\n", done.stderr


LIMIT = """
import resource
convkern.set_num_threads(64)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/status") as status:
    used = [int(line.split()[1]) for line in status if line.startswith("VmSize")][0] * 1024
# Room for the arrays, but not for the stacks of 64 threads.
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
big = np.ones((64, 16, 40, 40), np.float32)
for _ in range(3):
    print(convkern.conv2d(big, w).shape)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_threads_that_cannot_be_started():
    done = run_python(LIMIT)
    assert done.returncode == 0 and done.stdout.count("(64, 32, 38, 38)") == 3, done.stderr


def test_daemon_threads_at_shutdown():
    done = run_python(
        """
def busy():
    while True:
        convkern.conv2d(x, w)
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
time.sleep(0.3)
print("done")
"""
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


# ---------------------------------------------------------------- the caller's environment


def fenv():
    """The C library's view of the floating-point environment, as bytes."""
    buffer = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(buffer)
    return buffer.raw


@pytest.mark.skipif(sys.platform != "linux", reason="calls glibc's fesetround")
def test_rounding_mode_is_neither_used_nor_changed():
    libm = ctypes.CDLL("libm.so.6")
    downward = {"x86_64": 0x400, "aarch64": 0x800000}[os.uname().machine]
    expected = convkern.conv2d(X, W)
    try:
        assert libm.fesetround(downward) == 0
        before = fenv()
        got = convkern.conv2d(X, W)
        assert fenv() == before
        assert libm.fegetround() == downward
    finally:
        libm.fesetround(0)
    assert got.tobytes() == expected.tobytes()


def test_signal_handlers_are_left_alone():
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    convkern.conv2d(X, W)
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before


def test_memory_does_not_grow():
    import resource

    for _ in range(20):
        convkern.conv2d(X, W)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in range(8, 40):
        for _ in range(30):
            convkern.conv2d(X[:, :, :size, :size], W)
            convkern.max_pool2d(X, 2, return_indices=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_import_is_quick(tmp_path):
    """``import convkern`` adds less than 60 ms of processor time to ``import numpy``.

    That is with compiled bytecode, which an installation has; the first import makes it.
    """
    code = """
import time, numpy
start = time.thread_time()
import convkern
print(time.thread_time() - start)
"""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    times = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        times.append(float(done.stdout))
        time.sleep(0.05)
    assert min(times) < 0.060, times
