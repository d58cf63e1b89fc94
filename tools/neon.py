"""Build the micro-kernels for 64-bit ARM and run tests/csrc/kernels_test.c in an emulator.

    python tools/neon.py [--x86] [TIMES]

Every kernel of the instruction sets `baseline` and `neon` is compared with plain loops, TIMES (20)
random cases for each shape of tile, ten times as many for the others; arrays, scratch memory too,
end at unmapped pages.  Needs Debian's packages gcc-aarch64-linux-gnu and qemu-user, or those of
another system that bring the same commands.

With --x86 the same is done on an x86 processor for its instruction sets, by GCC and no emulator:
masked loads and stores, which sanitizers do not see, meet those pages.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "convkern" / "_kernels" / "csrc"
#: These and those of the instruction sets are setup.py's.
FLAGS = ("-O3", "-g", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")


class Target(NamedTuple):
    """A processor: its compiler, what runs its programs, and instruction sets with their flags."""

    name: str
    compiler: str
    emulator: tuple[str, ...]
    isas: dict[str, tuple[str, ...]]

    @property
    def folder(self) -> Path:
        """Where the program is built."""
        return ROOT / "build" / self.name

    def compile(self, name: str, source: Path, flags: list[str]) -> Path:
        """Compile a file; return the object."""
        out = self.folder / f"{name}.o"
        command = [self.compiler, "-std=c11", "-D_GNU_SOURCE", *FLAGS, *flags, f"-I{CSRC}"]
        subprocess.run([*command, "-c", source, "-o", out], check=True)
        return out

    def build(self) -> Path:
        """Compile kernels.c for each instruction set and dtype and the rest; return the program."""
        self.folder.mkdir(parents=True, exist_ok=True)
        have = [f"-DCK_HAVE_{isa.upper()}" for isa in self.isas]
        rest = (CSRC / "dispatch.c", CSRC / "memory.c", ROOT / "tests" / "csrc" / "kernels_test.c")
        jobs = [(source.stem, source, have) for source in rest]
        for isa, flags in self.isas.items():
            macros = [*flags, f"-DCK_ISA={isa}", f"-DCK_ISA_{isa.upper()}"]
            for dtype in ("f32", "f64"):
                of_dtype = [*macros, f"-DCK_DTYPE_{dtype.upper()}"]
                jobs.append((f"{isa}_{dtype}", CSRC / "kernels.c", of_dtype))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: self.compile(*job), jobs))
        program = self.folder / "kernels_test"
        subprocess.run([self.compiler, "-o", program, *objects, "-lm", "-lpthread"], check=True)
        return program


ARM = Target(
    "neon",
    "aarch64-linux-gnu-gcc",
    ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
    {"baseline": (), "neon": ()},
)
X86 = Target("x86", "gcc", (), {"baseline": (), "avx2": AVX2, "avx512": AVX512})


def main() -> None:
    """Build and run; exit with the program's status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--x86", action="store_true", help="for an x86 processor, not emulated")
    parser.add_argument("times", nargs="?", default="20", help="random cases of each tile (20)")
    options = parser.parse_args()
    target = X86 if options.x86 else ARM
    environment = os.environ | {"CONVKERN_TEST_TIMES": options.times}
    done = subprocess.run([*target.emulator, target.build()], env=environment)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
