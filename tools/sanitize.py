"""Build the package for a checker of memory or threads and run tests with it.

    python tools/sanitize.py address [--isa avx2 --isa avx512] [PYTEST ARGUMENT ...]
    python tools/sanitize.py thread | valgrind ...

address
    AddressSanitizer and UndefinedBehaviorSanitizer; needs GCC.  They cannot see masked loads and
    stores, which the compiler does not instrument; the tests with guard pages do.
thread
    ThreadSanitizer, which is told of OpenMP's synchronisation by LLVM's library Archer; needs
    clang with its libomp and, for a runtime that an ordinary interpreter can load, GCC
    (Debian's clang, libomp-dev and gcc).
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
#: One image is read while another is written to its place, by two threads; without, no race.
SHARED = """
both = np.ones((65, 4, 99, 99), np.float32)
_kernels.to_channels_last(both[:64], both[1:], 2)
"""
APART = SHARED.replace("both[1:]", "both[1:].copy()")
UNWRITTEN = """
out = np.ones((1, 4, 99, 99), np.float32)
_kernels.to_channels_last(np.empty((1, 4, 99, 99), np.float32), out, 1)
print(out.any())
"""
OVERFLOW = """
ctypes.CDLL(sys.argv[1]).next_integer(2**31 - 1)
"""
#: The interpreter looks at the first digit of integers that have none; the loader of libraries and
#: wmemcmp compare words that end beyond a name.
SUPPRESSIONS = "".join(
    f"{{\n  {kind} in {program}\n  Memcheck:{kind}\n  obj:*/{program}*\n}}\n"
    for kind, program in (
        *(("Cond", name) for name in ("libpython3", "bin/python3", "ld-linux")),
        *(("Value8", name) for name in ("libpython3", "bin/python3")),
        ("Addr8", "ld-linux"),
        ("Addr32", "libc.so"),
    )
)
PLANTED = "int next_integer(int n) { return n + 1; }\n"


def ask(*command: str) -> str:
    """Return the line that a command prints."""
    return subprocess.check_output(command, text=True).strip()


def archer() -> str:
    """Return the path of the library that tells ThreadSanitizer what clang's OpenMP does."""
    return str(Path(ask("clang", "-print-resource-dir")).parents[1] / "libarcher.so")


@dataclass(frozen=True)
class Checker:
    """How the package is built for a checker, how an ordinary interpreter runs it, and faults.

    `sanitizers` is what CONVKERN_SANITIZE says, `preload` are GCC's libraries that the interpreter
    needs; `faults` maps what a report must say to a fault, `innocent` is what has none.
    """

    sanitizers: str
    compiler: str
    shapes: int
    faults: dict[str, str]
    innocent: str = ""
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
        command = [sys.executable, "setup.py", "-q", "build"]
        command += ["--build-base", str(self.folder), "--build-lib", str(self.folder / "lib")]
        environment = os.environ | {"CONVKERN_SANITIZE": self.sanitizers, "CC": self.compiler}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)

    def settings(self, isa: str = "") -> dict[str, str]:
        """Return the environment in which an ordinary interpreter runs the checked package."""
        libraries = [ask("gcc", f"-print-file-name={name}") for name in self.preload]
        return {
            **{"CONVKERN_TEST_SHAPES": str(self.shapes)},
            **os.environ,
            **self.environment,
            **({"LD_PRELOAD": " ".join(libraries)} if libraries else {}),
            **({"OMP_TOOL_LIBRARIES": archer()} if self.compiler == "clang" else {}),
            **({"CONVKERN_ISA": isa} if isa else {}),
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": str(self.folder / "lib"),
            "PYTHONSAFEPATH": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # Several runs share the processors: threads that wait had better sleep.
            "OMP_WAIT_POLICY": "passive",
        }

    def check_faults_are_found(self) -> None:
        """Exit unless the checker reports every fault."""
        source, planted = self.folder / "planted.c", self.folder / "planted.so"
        source.write_text(PLANTED)
        (self.folder / "python.supp").write_text(SUPPRESSIONS)
        flags = ["-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
        subprocess.run(["gcc", *flags, "-o", planted, source], check=True)
        header = "import ctypes, sys, numpy as np\nfrom convkern import _kernels\n"
        header += f"assert _kernels.__file__.startswith({str(self.folder)!r}), _kernels.__file__\n"
        for report, code in {**self.faults, "": self.innocent}.items():
            done = subprocess.run(
                [*self.prefix, sys.executable, "-c", header + code, planted],
                env=self.settings(*self.isas[:1]),
                capture_output=True,
                text=True,
            )
            if (done.returncode != 0) != bool(report) or report not in done.stderr:
                sys.exit(f"wanted {report!r}, but got {done.returncode}:\n{done.stderr}")
            print(f"as it should be: {report or 'nothing'} found", flush=True)

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
        faults={"ThreadSanitizer: data race": SHARED},
        innocent=APART,
        preload=("libtsan.so",),
        environment={
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
        innocent=UNWRITTEN.replace("np.empty(", "np.zeros("),
        prefix=(
            *("valgrind", "-q", "--error-exitcode=1", "--num-callers=20"),
            f"--suppressions={ROOT / 'build' / 'valgrind' / 'python.supp'}",
        ),
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
