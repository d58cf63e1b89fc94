"""Saving is all or nothing: killed at any moment or refused by the system, a whole file stays.

Each test writes over a file in children of one process.  ``CONVKERN_KILLS`` is how many of them
are killed at a random time (50); with strace installed, they also die, or get an error, at each
system call.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convkern.checkpoint import save_training, save_weights

pytest.importorskip("safetensors")

pytestmark = pytest.mark.once
if sys.platform != "linux":
    pytest.skip("needs fork, signals and limits", allow_module_level=True)

KILLS = int(os.environ.get("CONVKERN_KILLS", "50"))
SIZE = 30_000

#: How a child writes number after number, and how its parent counts what is whole afterwards.
COMMON = f"""
import os, random, resource, signal, sys, time
import numpy as np
from convkern.checkpoint import load_weights, save_weights
path, argument = sys.argv[1], int(sys.argv[2])

def save(number):
    save_weights(path, {{"x": np.full({SIZE}, number, np.float32)}})

def in_child(work):
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return child

def whole():
    found = np.unique(load_weights(path)["x"])
    assert found.size == 1, found
    return int(found[0])

save(0)
"""

AT_RANDOM = """
def work():
    for number in range(1, 10**6):
        save(number)

random.seed(0)
start = time.perf_counter()
os.waitpid(in_child(lambda: [save(0) for _ in range(4)]), 0)
seconds = time.perf_counter() - start
killed = []
for _ in range(argument):
    child = in_child(work)
    time.sleep(random.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed.append(whole())
print(len(killed), len(set(killed)))
"""

AT_EVERY_LINE = """
def dies_at(line):
    def count(frame, event, _):
        nonlocal line
        if not frame.f_code.co_filename.endswith("checkpoint.py"):
            return None
        line -= 1
        if not line:
            os.kill(os.getpid(), signal.SIGKILL)
        return count
    def work():
        sys.settrace(count)
        save(1)
    return work

found = []
for line in range(1, 10**6):
    status = os.waitpid(in_child(dies_at(line)), 0)[1]
    found.append(whole())
    if not status:
        break
    if found[-1]:
        save(0)
print(len(found), *sorted(set(found)))
"""

IN_A_FULL_FOLDER = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def full(limit):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save(1)
        except OSError:
            os._exit(3)
    return work

codes = []
for limit in range(0, 150_000, 4000):
    codes.append(os.waitstatus_to_exitcode(os.waitpid(in_child(full(limit)), 0)[1]))
    assert whole() == (codes[-1] == 0)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
print(codes.count(3), codes.count(0))
"""


def run(script, path, argument=0, *more):
    """Run a script in a process of its own and return the numbers that it prints."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", COMMON + script, str(path), str(argument), *more],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


def test_killed_at_random(tmp_path):
    killed, different = run(AT_RANDOM, tmp_path / "w", KILLS)
    assert killed == KILLS
    assert different > 1  # files were written


def test_killed_at_every_line(tmp_path):
    lines, *found = run(AT_EVERY_LINE, tmp_path / "w")
    assert lines > 30
    assert found == [0, 1]


def test_no_room_for_the_rest(tmp_path):
    refused, written = run(IN_A_FULL_FOLDER, tmp_path / "w")
    assert refused == 1 + 4 * SIZE // 4000
    assert written > 1


TWO_WRITERS = """
children = [in_child(lambda n=n: [save(n) for _ in range(argument)]) for n in (1, 2)]
seen = []
while children:
    seen.append(whole())
    children = [c for c in children if os.waitpid(c, os.WNOHANG) == (0, 0)]
assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
print(len(seen), *sorted(set(seen)))
"""


def test_two_processes(tmp_path):
    reads, *found = run(TWO_WRITERS, tmp_path / "w", 20)
    assert reads > 1
    assert set(found) <= {0, 1, 2} and found[-1]


@pytest.mark.parametrize("save", [save_weights, save_training])
def test_folders_that_cannot_be_written(tmp_path, save):
    """Also for the superuser, whom no permission stops."""
    arguments = [{"x": np.zeros(3)}] + ([{}] if save is save_training else [])
    with pytest.raises(OSError):
        save("/proc/self/weights", *arguments)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        save(tmp_path / "file" / "w", *arguments)
    with pytest.raises(OSError):
        save(tmp_path / ("x" * 300), *arguments)
    assert os.listdir(tmp_path) == ["file"]


# --- at every system call

FILE_CALLS = ["openat", "newfstatat", "readlink", "write", "lseek", "close", "fsync", "rename"]

AT_EVERY_CALL = """
import re, subprocess
errors_of = {"openat": "EMFILE", "write": "ENOSPC", "mmap": "ENOMEM"}
folder, name = os.path.split(path)

def work():
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        save(1)
    except (OSError, MemoryError):
        os._exit(3)

def traced(*options):
    # Return how a child under strace ended, and its calls.
    child = in_child(work)
    os.waitpid(child, os.WUNTRACED)
    strace = subprocess.Popen(["strace", "-qq", "-p", str(child), "-o", path + ".log", *options])
    while "TracerPid:\\t0" in open(f"/proc/{child}/status").read():
        if strace.poll() is not None:
            sys.exit("strace cannot attach")
    os.kill(child, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    strace.wait()
    calls = re.findall("^([a-z0-9_]+)[(]", open(path + ".log").read(), re.M)
    os.unlink(path + ".log")
    return code, calls

def injected(fault, call, when):
    code, _ = traced("-e", f"inject={call}:{fault}:when={when}")
    found, others = whole(), [other for other in os.listdir(folder) if other != name]
    if fault == "signal=KILL":
        assert code in (0, -9), (call, when, code)
        for other in others:
            os.unlink(os.path.join(folder, other))
    else:
        assert code in (0, 3) and not others, (call, when, code, others)
        assert code or found, (call, when)
    if found:
        save(0)
    return code

code, calls = traced()
assert code == 0 and calls.count("fsync") == 2, (code, calls)
save(0)
kills, errors = [], []
for call in sorted(set(calls) - {"exit_group", "kill"}):
    for when in range(1, calls.count(call) + 1):
        kills.append(injected("signal=KILL", call, when))
        if call in sys.argv[3:]:
            errors.append(injected("error=" + errors_of.get(call, "EIO"), call, when))
print(len(kills), kills.count(-9), len(errors), errors.count(3))
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_at_every_system_call(tmp_path):
    kills, killed, errors, raised = run(AT_EVERY_CALL, tmp_path / "w", 0, *FILE_CALLS, "mmap")
    print(f"{kills} calls to die at, {errors} to fail, {raised} raised")
    assert killed >= kills - 2
    assert raised > 10
