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
    "depthwise": ("w(64, 1, 31)", "convkern.conv2d(images(9000, 64, 64), it, None, 4, groups=64)"),
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
def now():
    return np.array([time.monotonic(), time.process_time() / convkern.get_num_threads()])
def interrupt():
    moment.append(now())
    os.kill(os.getpid(), signal.SIGINT)
moment = []
threading.Timer(0.5, interrupt).start()
try:
    {call}
    os._exit(0)
except KeyboardInterrupt:
    print(min(now() - moment[0]))
# What was interrupted has left nothing behind.
assert (convkern.conv2d(x, w(32, 16, 3)) == convkern.conv2d(x, w(32, 16, 3))).all()
"""


@pytest.mark.parametrize("name", LONG_CALLS)
def test_interrupt_in_a_long_call(name):
    """Ctrl-C takes effect within 200 ms, of processor time where others take that away."""
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


# ---------------------------------------------------------------- threads that cannot be had

UNPRIVILEGED = """
import resource
expected = convkern.max_pool2d(x, 3)  # all that is imported late is, before files are out of reach
if os.getuid() == 0:
    os.setgid(60001), os.setuid(60001)  # limits do not bind the superuser
with convkern.num_threads(1):
    convolved = convkern.conv2d(x, w)
running = len(os.listdir("/proc/self/task"))
resource.setrlimit(resource.RLIMIT_NPROC, (running + {more}, running + {more}))
convkern.set_num_threads(64)
big = np.concatenate([x] * 16)
for _ in range(3):
    assert (convkern.max_pool2d(big, 3) == np.concatenate([expected] * 16)).all()
    assert (convkern.conv2d(big, w) == np.concatenate([convolved] * 16)).all()
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize("more", (0, 1, 5))
def test_a_limit_of_processes(more):
    done = run_python(UNPRIVILEGED.format(more=more), CONVKERN_NUM_THREADS="1")
    assert done.stdout == "done\n", done.stderr


MANY_AT_THE_LIMIT = """
import resource
big = np.concatenate([x] * 4)
convkern.max_pool2d(big, 3)
if os.getuid() == 0:
    os.setgid(60001), os.setuid(60001)
convkern.set_num_threads(6)
gate = threading.Barrier(9)
def work():
    gate.wait()
    gate.wait()
    for _ in range(20):
        convkern.max_pool2d(big, 3)
workers = [threading.Thread(target=work) for _ in range(8)]
for worker in workers:
    worker.start()
gate.wait()
most = len(os.listdir("/proc/self/task")) + 6
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
gate.wait()
for worker in workers:
    worker.join()
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_many_callers_at_a_limit_of_processes():
    """None takes the threads that another has just found that it may start."""
    for _ in range(3):
        done = run_python(MANY_AT_THE_LIMIT, CONVKERN_NUM_THREADS="1")
        assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    "setting",
    [
        {"OMP_NUM_THREADS": "0"},
        {"OMP_NUM_THREADS": "abc"},
        {"OMP_NUM_THREADS": "10000"},
        {"OMP_NUM_THREADS": "2,3,4"},
        {"OMP_NUM_THREADS": "9" * 40},
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_THREAD_LIMIT": "3"},
        {"OMP_DYNAMIC": "true"},
        {"OMP_DYNAMIC": "maybe"},
        {"OMP_SCHEDULE": "guided,7"},
        {"OMP_SCHEDULE": "never"},
        {"OMP_PROC_BIND": "spread", "OMP_PLACES": "threads"},
        {"OMP_PROC_BIND": "sometimes"},
        {"OMP_PLACES": "{0}:1:1", "OMP_PROC_BIND": "close"},
        {"OMP_MAX_ACTIVE_LEVELS": "0"},
        {"OMP_NESTED": "true"},
        {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "infinity"},
        {"OMP_WAIT_POLICY": "passive"},
        {"OMP_STACKSIZE": "1"},
        {"OMP_STACKSIZE": "16k"},
        {"OMP_STACKSIZE": "4000G"},
        {"OMP_STACKSIZE": "large"},
        {"OMP_CANCELLATION": "true"},
        {"OMP_DISPLAY_ENV": "verbose"},
        {"GOMP_CPU_AFFINITY": "0"},
    ],
    ids=lambda setting: ",".join(f"{name}={value[:12]}" for name, value in setting.items()),
)
def test_settings_of_openmp(setting):
    """None of them changes a result or ends the process."""
    code = """
with convkern.num_threads(1):
    expected = convkern.conv2d(x, w), *convkern.conv2d_backward(np.ones((4, 32, 38, 38), 'f'), x, w)
with convkern.num_threads(4):
    got = convkern.conv2d(x, w), *convkern.conv2d_backward(np.ones((4, 32, 38, 38), 'f'), x, w)
assert all((a == b).all() for a, b in zip(got, expected))
convkern.conv2d(x, w)
print("done")
"""
    done = run_python(code, **setting)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "rubbish"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({}, None),
        ({"a/b/cpu.max": "300000 100000"}, 3),
        ({"a/cpu.max": "100000 100000", "a/b/cpu.max": "300000 100000"}, 1),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quota_of_a_control_group(tmp_path, files, expected):
    """The smallest counts: that of the process's own group, or of one around it."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    own = tmp_path / "own"
    own.write_text("12:cpu,cpuacct:/a/b\n0::/a/b\n")
    assert threads._cgroup_quota(tmp_path, own) == expected


# ---------------------------------------------------------------- neighbours


@pytest.mark.parametrize("first", (True, False))
@pytest.mark.parametrize(
    "library",
    (
        pytest.param("torch", marks=pytest.mark.torch),
        "sklearn.linear_model",
        "numexpr",
        "onnxruntime",
    ),
)
def test_other_libraries(library, first):
    """Whichever is loaded first, both then work, from several threads."""
    if importlib.util.find_spec(library.partition(".")[0]) is None:
        pytest.skip(f"{library} is not installed")
    code = f"""
{"convkern.conv2d(x, w)" if first else ""}
import {library}
with convkern.num_threads(1):
    expected = convkern.conv2d(x, w)
def call():
    with convkern.num_threads(2):
        right.append((convkern.conv2d(x, w) == expected).all())
right = []
workers = [threading.Thread(target=call) for _ in range(4)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(len(right), all(right))
"""
    before = "" if first else f"import {library}\n"
    done = run_python(code, before=before, PYTHONWARNINGS="ignore")
    assert done.stdout == "4 True\n", done.stderr


OTHER_REGION = """
void in_region(void (*call)(int), int threads)
{
    #pragma omp parallel for num_threads(threads)
    for (int i = 0; i < threads; i++)
        call(i);
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_in_a_region_of_somebody_else(tmp_path):
    """There a call runs on one thread, with the same result."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(OTHER_REGION)
    command = [compiler, "-shared", "-fPIC", "-fopenmp", "-o", library, source]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("gcc cannot compile OpenMP")
    code = f"""
import ctypes
other = ctypes.CDLL({str(library)!r})
with convkern.num_threads(1):
    expected = convkern.conv2d(x, w)
convkern.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
def call(i):
    right.append((convkern.conv2d(x, w) == expected).all())
    most.append(len(os.listdir("/proc/self/task")))
for _ in range(5):
    right, most = [], []
    other.in_region(ctypes.CFUNCTYPE(None, ctypes.c_int)(call), 3)
    assert len(right) == 3 and all(right)
    assert max(most) <= before + 2, (before, most)
print("done")
"""
    done = run_python(code)
    assert done.stdout == "done\n", done.stderr


# ---------------------------------------------------------------- floating-point environment

#: Of x86: flush to zero and denormals are zero; of aarch64: flush to zero.  Where, and the bits.
FLUSH = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}


@pytest.mark.skipif(sys.platform != "linux", reason="calls glibc's fesetenv")
def test_flushing_to_zero_is_neither_used_nor_changed():
    """Subnormals count, in the caller's thread and in the others; the caller's setting stays."""
    libm, (place, flag) = ctypes.CDLL("libm.so.6"), FLUSH[os.uname().machine]
    tiny = np.full((64, 16, 20, 20), 1e-42, np.float32)
    weight = np.ones((16, 16, 3, 3), np.float32)
    usual, flushing, after = (ctypes.create_string_buffer(64) for _ in range(3))
    for count in (1, 2):
        with convkern.num_threads(count):
            expected = functional.conv2d(tiny, weight), functional.avg_pool2d(tiny, 3)
            assert all((result > 0).all() for result in expected)
            libm.fegetenv(usual)
            flushing.raw = usual.raw
            ctypes.c_uint32.from_buffer(flushing, place).value |= flag
            libm.fesetenv(flushing)
            try:
                got = functional.conv2d(tiny, weight), functional.avg_pool2d(tiny, 3)
                libm.fegetenv(after)
            finally:
                libm.fesetenv(usual)
            assert after.raw == flushing.raw
            assert [y.tobytes() for y in got] == [y.tobytes() for y in expected]


# ---------------------------------------------------------------- many at once


def test_sixteen_threads_with_every_operator():
    """Nothing is shared but the inputs: each thread gets the bits of a call alone."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 18, 20, 21), np.float32)
    w = rng.standard_normal((20, 18, 3, 3), np.float32)
    y = functional.conv2d(x, w)
    values, indices = functional.max_pool2d(x, 2, return_indices=True)
    plan = convkern.freeze(convkern.nn.Conv2d(18, 8, 3, rng=rng))
    operators = [
        lambda: functional.conv2d(x, w),
        lambda: functional.conv2d(functional.to_channels_last(x), w, algorithm="direct"),
        lambda: functional.conv2d_backward(y, x, w),
        lambda: functional.conv_transpose2d(y, w),
        lambda: (functional.max_pool2d(x, 2), functional.avg_pool2d(x, 2)),
        lambda: functional.max_pool2d_backward(values, indices, x.shape),
        lambda: functional.linear(x.reshape(2, -1), x.reshape(2, -1)),
        lambda: functional.batch_norm(x, None, None, training=True),
        lambda: functional.local_response_norm(x, 3),
        lambda: functional.col2im(functional.im2col(x, 3), x.shape[2:], 3),
        lambda: functional.softmax(x),
        lambda: plan(x),
    ]

    def bits(call):
        result = call()
        return [
            np.asarray(r).tobytes() for r in (result if isinstance(result, tuple) else [result])
        ]

    with convkern.num_threads(2):
        expected = [bits(call) for call in operators]
    wrong, gate = [], threading.Barrier(16)

    def work(first):
        gate.wait()
        with convkern.num_threads(2):
            for i in range(3 * len(operators)):
                number = (first + i) % len(operators)
                if bits(operators[number]) != expected[number]:
                    wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


FORK = """
convkern.set_num_threads(2)
calls = [
    lambda: convkern.conv2d(x, w),
    lambda: convkern.conv2d_backward(np.ones((4, 32, 38, 38), np.float32), x, w)[1],
    lambda: convkern.max_pool2d(x, 3),
    lambda: convkern.linear(x.reshape(64, -1), x.reshape(64, -1)),
]
expected = [call() for call in calls]
def computes():
    return all((call() == e).all() for call, e in zip(calls, expected))
def in_child(code):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if code() else 1)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
stop = False
def busy():
    while not stop:
        assert computes()
workers = [threading.Thread(target=busy) for _ in range(3)]
for worker in workers:
    worker.start()
def child():
    one = convkern.get_num_threads() == 1 == len(os.listdir("/proc/self/task"))
    right = computes() and len(os.listdir("/proc/self/task")) == 1
    in_child(computes)
    threaded = threading.Thread(target=computes)
    threaded.start()
    threaded.join()
    return one and right
for _ in range(4):
    in_child(child)
stop = True
for worker in workers:
    worker.join()
in_child(child)
assert computes()
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_fork_while_other_threads_compute():
    """The child and its own child compute all the same, each on one thread."""
    done = run_python(FORK, PYTHONWARNINGS="ignore")
    assert done.stdout == "done\n", done.stderr
