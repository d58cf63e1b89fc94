"""Build the package for AddressSanitizer and UndefinedBehaviorSanitizer and run tests with it.

    python tools/sanitize.py [--isa avx2 --isa avx512] [PYTEST ARGUMENT ...]

The build goes to build/sanitized and leaves the one in use alone.  Before the tests, faults are
committed on purpose: the sanitizers must end the process at each of them, or nothing that follows
means anything.  Without arguments the random-shape suites run on every instruction set of this
processor, all at once, as many shapes as CONVKERN_TEST_SHAPES says (200).  Needs GCC.

What AddressSanitizer cannot see, because the compiler does not instrument them, are masked loads
and stores; the tests with guard pages see those.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "sanitized"
LIBRARY = BUILD / "lib"
SUITES = ("test_exact.py", "test_winograd.py", "test_pool.py", "test_dense.py")
#: Faults, and what the report of each must say.  The first two are committed by the package's own
#: kernels, whose drivers trust their arguments: an output that is too small, and an input that
#: does not begin where its memory does.
FAULTS = {
    "WRITE of size": """
_kernels.to_channels_last(np.ones((1, 40, 9, 9), np.float32), np.empty((1, 4, 9, 9), np.float32), 1)
""",
    "READ of size": """
_kernels.to_channels_last(np.ones((1, 4, 9, 9), np.float32)[:, :, :, ::-1],
                          np.empty((1, 4, 9, 9), np.float32), 1)
""",
    "signed integer overflow": """
ctypes.CDLL(sys.argv[1]).next_integer(2**31 - 1)
""",
}
PLANTED = "int next_integer(int n) { return n + 1; }\n"


def build() -> None:
    """Bring the instrumented copy of the package up to date."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--parallel", str(os.cpu_count() or 1)]
        + ["--build-base", str(BUILD), "--build-lib", str(LIBRARY)],
        cwd=ROOT,
        env=os.environ | {"CONVKERN_SANITIZE": "address,undefined"},
        check=True,
    )


def environment() -> dict[str, str]:
    """Return the environment in which an ordinary interpreter runs the instrumented package."""
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(LIBRARY),
        "PYTHONSAFEPATH": "1",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "CONVKERN_TEST_SHAPES": os.environ.get("CONVKERN_TEST_SHAPES", "200"),
    }


def check_faults_are_found() -> None:
    """Exit unless the sanitizers end every process that commits a fault."""
    source, planted = BUILD / "planted.c", BUILD / "planted.so"
    source.write_text(PLANTED)
    flags = ["-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, "-o", planted, source], check=True)
    header = "import ctypes, sys, numpy as np\nfrom convkern import _kernels\n"
    header += f"assert _kernels.__file__.startswith({str(LIBRARY)!r}), _kernels.__file__\n"
    for report, fault in FAULTS.items():
        done = subprocess.run(
            [sys.executable, "-c", header + fault, planted],
            env=environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode == 0 or report not in done.stderr:
            sys.exit(f"no report of {report!r}, but {done.returncode}:\n{done.stderr}")
        print(f"found as it should be: {report}")


def main() -> None:
    """Build, check the checkers, run the tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", action="append", help="instruction set (default: all)")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    build()
    check_faults_are_found()
    names = "from convkern import _kernels; print(*_kernels.isa_names())"
    supported = subprocess.check_output([sys.executable, "-c", names], env=environment(), text=True)
    arguments = options.pytest or [f"tests/{name}" for name in SUITES]
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *arguments]
    runs = {
        isa: subprocess.Popen(command, cwd=ROOT, env=environment() | {"CONVKERN_ISA": isa})
        for isa in options.isa or supported.split()
    }
    failed = [isa for isa, run in runs.items() if run.wait() != 0]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
