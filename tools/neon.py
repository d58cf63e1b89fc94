"""Build the micro-kernels for 64-bit ARM and run tests/csrc/kernels_test.c in an emulator.

    python tools/neon.py [TIMES]

Every kernel of the instruction sets `baseline` and `neon` is compared with plain loops, TIMES (20)
random cases for each shape of tile, ten times as many for the others.  Needs Debian's packages
gcc-aarch64-linux-gnu and qemu-user, or those of another system that bring the same commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "convkern" / "_kernels" / "csrc"
BUILD = ROOT / "build" / "neon"
COMPILER = ("aarch64-linux-gnu-gcc", "-std=c11", "-D_GNU_SOURCE")
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
ISAS = ("baseline", "neon")
#: Those of setup.py.
FLAGS = ("-O3", "-g", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")


def build() -> Path:
    """Compile kernels.c for each instruction set and dtype, the rest once; return the program."""
    BUILD.mkdir(parents=True, exist_ok=True)
    have = [f"-DCK_HAVE_{isa.upper()}" for isa in ISAS]
    rest = (CSRC / "dispatch.c", CSRC / "memory.c", ROOT / "tests" / "csrc" / "kernels_test.c")
    jobs: list[tuple[str, Path, list[str]]] = [(source.stem, source, have) for source in rest]
    for isa in ISAS:
        for dtype in ("f32", "f64"):
            macros = [f"-DCK_ISA={isa}", f"-DCK_ISA_{isa.upper()}", f"-DCK_DTYPE_{dtype.upper()}"]
            jobs.append((f"{isa}_{dtype}", CSRC / "kernels.c", macros))

    def compile_one(job: tuple[str, Path, list[str]]) -> Path:
        name, source, macros = job
        out = BUILD / f"{name}.o"
        command = [*COMPILER, *FLAGS, *macros, f"-I{CSRC}", "-c", source, "-o", out]
        subprocess.run(command, check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = BUILD / "kernels_test"
    subprocess.run([*COMPILER, "-o", program, *objects, "-lm", "-lpthread"], check=True)
    return program


def main() -> None:
    """Build and run; exit with the program's status."""
    times = sys.argv[1] if len(sys.argv) > 1 else "20"
    done = subprocess.run([*EMULATOR, build()], env=os.environ | {"CONVKERN_TEST_TIMES": times})
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
