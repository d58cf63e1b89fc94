"""Build the package for a checker of memory or threads and run tests with it.

    python tools/sanitize.py address [--isa avx2 --isa avx512] [PYTEST ARGUMENT ...]
    python tools/sanitize.py thread | valgrind ...

address
    AddressSanitizer and UndefinedBehaviorSanitizer; needs GCC.  They cannot see masked loads and
    stores, which the compiler does not instrument; the tests with guard pages do.
thread
    ThreadSanitizer, which is told of OpenMP's synchronisation by LLVM's library Archer; needs
    clang and its libomp (Debian's clang-14, libomp-14-dev).
valgrind
    Memcheck: use of values that nobody wrote.  It does not know AVX-512.

Each build goes to a folder of its own, build/CHECKER, and leaves the one in use alone.  In it no
memory is kept between calls and the smallest work is shared between threads.  Before the tests,
faults are committed on purpose: the checker must report each of them, or nothing that follows
means anything.  Without arguments the random-shape suites run on every instruction set that the
checker knows, all at once, as many shapes as CONVKERN_TEST_SHAPES says, or a number of the
checker's own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITES = [f"tests/test_{name}.py" for name in ("exact", "winograd", "pool", "dense")]
SKIPPED = "not torch and not shape_list"  # large; nothing that the random shapes do not have

#: Faults that the package's own kernels commit, whose drivers trust their arguments.
READ = """
_kernels.to_channels_last(np.ones((1, 4, 9, 9), np.float32)[:, :, :, ::-1],
                          np.empty((1, 4, 9, 9), np.float32), 1)
"""
WRITE = """
_kernels.to_channels_last(np.ones((1, 40, 9, 9), np.float32), np.empty((1, 4, 9, 9), np.float32), 1)
"""
#: Two images are written to the same place, by two threads.
RACE = """
out = np.lib.stride_tricks.as_strided(np.empty((1, 4, 99, 99), np.float32), (2, 4, 99, 99),
                                      (0, 39204, 396, 4)).transpose(0, 2, 3, 1)
_kernels.to_channels_last(np.ones((2, 4, 99, 99), np.float32), out.transpose(0, 3, 1, 2), 2)
"""
UNWRITTEN = """
out = np.ones((1, 4, 99, 99), np.float32)
_kernels.to_channels_last(np.empty((1, 4, 99, 99), np.float32), out, 1)
print(out.any())
"""
OVERFLOW = """
ctypes.CDLL(sys.argv[1]).next_integer(2**31 - 1)
"""
PLANTED = "int next_integer(int n) { return n + 1; }\n"


def library(compiler: str, name: str) -> str:
    """Return the path of a library that comes with a compiler."""
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Checker:
    """How the package is built for a checker, how an ordinary interpreter runs it, and faults.

    `sanitizers` is what CONVKERN_SANITIZE says, `preload` are the libraries that the interpreter
    needs; `faults` maps what a report must say to a fault.
    """

    sanitizers: str
    compiler: str
    shapes: int
    faults: dict[str, str]
    preload: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    isas: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the build is."""
        return ROOT / "build" / self.sanitizers

    def build(self) -> None:
        """Bring the checked copy of the package up to date."""
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build", "--parallel", str(os.cpu_count() or 1)]
            + ["--build-base", str(self.folder), "--build-lib", str(self.folder / "lib")],
            cwd=ROOT,
            env=os.environ | {"CONVKERN_SANITIZE": self.sanitizers, "CC": self.compiler},
            check=True,
        )

    def settings(self, isa: str = "") -> dict[str, str]:
        """Return the environment in which an ordinary interpreter runs the checked package."""
        libraries = [library(self.compiler, name) for name in self.preload]
        return {
            **{"CONVKERN_TEST_SHAPES": str(self.shapes)},
            **os.environ,
            **self.environment,
            **({"LD_PRELOAD": " ".join(libraries)} if libraries else {}),
            **({"CONVKERN_ISA": isa} if isa else {}),
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": str(self.folder / "lib"),
            "PYTHONSAFEPATH": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def check_faults_are_found(self) -> None:
        """Exit unless the checker reports every fault."""
        source, planted = self.folder / "planted.c", self.folder / "planted.so"
        source.write_text(PLANTED)
        flags = ["-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
        subprocess.run(["gcc", *flags, "-o", planted, source], check=True)
        header = "import ctypes, sys, numpy as np\nfrom convkern import _kernels\n"
        header += f"assert _kernels.__file__.startswith({str(self.folder)!r}), _kernels.__file__\n"
        for report, fault in self.faults.items():
            done = subprocess.run(
                [*self.prefix, sys.executable, "-c", header + fault, planted],
                env=self.settings(*self.isas[:1]),
                capture_output=True,
                text=True,
            )
            if done.returncode == 0 or report not in done.stderr:
                sys.exit(f"no report of {report!r}, but {done.returncode}:\n{done.stderr}")
            print(f"found as it should be: {report}", flush=True)

    def supported(self) -> list[str]:
        """Return the instruction sets that the checker and this processor know."""
        names = "from convkern import _kernels; print(*_kernels.isa_names())"
        command = [sys.executable, "-c", names]
        return subprocess.check_output(command, env=self.settings(), text=True).split()


CHECKERS = {
    "address": Checker(
        "address,undefined",
        "gcc",
        shapes=200,
        faults={"READ of size": READ, "WRITE of size": WRITE, "signed integer overflow": OVERFLOW},
        preload=("libasan.so", "libubsan.so"),
        environment={
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    ),
    "thread": Checker(
        "thread",
        "clang",
        shapes=50,
        faults={"WARNING: ThreadSanitizer: data race": RACE},
        preload=("libclang_rt.tsan-x86_64.so",),
        environment={
            "OMP_TOOL_LIBRARIES": "libarcher.so",
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
            "CONVKERN_NUM_THREADS": "2",
        },
        prefix=("setarch", "-R"),  # the sanitizer wants its addresses free
        isas=("baseline",),  # masked stores of the others are not instrumented
    ),
    "valgrind": Checker(
        "valgrind",
        "gcc",
        shapes=8,
        faults={"Conditional jump or move depends on uninitialised": UNWRITTEN},
        prefix=("valgrind", "-q", "--error-exitcode=1", "--num-callers=20"),
        isas=("avx2",),
    ),
}


def main() -> None:
    """Build, check the checker, run the tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checker", choices=CHECKERS)
    parser.add_argument("--isa", action="append", help="instruction set (default: all)")
    options, arguments = parser.parse_known_args()
    checker = CHECKERS[options.checker]
    checker.build()
    checker.check_faults_are_found()
    command = [*checker.prefix, sys.executable, "-m", "pytest", "-q", "-s"]
    command += ["-p", "no:cacheprovider", *(arguments or ["-k", SKIPPED, *SUITES])]
    runs = {
        isa: subprocess.Popen(command, cwd=ROOT, env=checker.settings(isa))
        for isa in options.isa or checker.isas or checker.supported()
    }
    failed = [isa for isa, run in runs.items() if run.wait() != 0]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
