"""Build of the compiled modules; the first also holds the micro-kernels for every processor.

Everything else about the package stands in pyproject.toml.  Environment:
CONVKERN_REQUIRE_OPENMP=1 makes a compiler without OpenMP an error instead of a
serial build, CONVKERN_WERROR=1 makes warnings errors, CONVKERN_SANITIZE=address,undefined
builds for the sanitizers of that name, =valgrind for a checker that needs no such help
(tools/sanitize.py runs the tests with them).
"""

import hashlib
import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError
from setuptools.modified import newer_group

# The kernels of each instruction set: its name and the flags that only its objects get.
ISAS_X86 = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
ISAS_ARM = {"baseline": [], "neon": []}
ISAS = {
    "x86_64": ISAS_X86,
    "amd64": ISAS_X86,
    "aarch64": ISAS_ARM,
    "arm64": ISAS_ARM,
}.get(platform.machine().lower(), {"baseline": []})

CSRC = Path("convkern", "_kernels", "csrc")
FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
SANITIZERS = os.environ.get("CONVKERN_SANITIZE", "")
SANITIZE = []
if SANITIZERS not in ("", "valgrind"):
    SANITIZE = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
if SANITIZERS:
    FLAGS += [*SANITIZE, "-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv", "-DCK_CHECKED"]
WARNINGS = ["-Wall", "-Wextra"] + ["-Werror"] * (os.environ.get("CONVKERN_WERROR") == "1")
# Clang's OpenMP on macOS is a library of its own; everywhere else one flag does both.
OPENMP = [["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]]
OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildKernels(build_ext):
    """Compiles kernels.c once per instruction set and dtype and links `core` with the objects."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        ext.extra_compile_args = [*FLAGS]
        ext.extra_link_args = [*SANITIZE]
        if ext.name.endswith(".core"):
            openmp = self.find_openmp()
            ext.extra_compile_args += openmp
            ext.extra_link_args += openmp
            ext.extra_objects = self.compile_kernels()
        super().build_extension(ext)

    def compile_kernels(self) -> list[str]:
        """Compile the C files, as many at once as there are processors; return the objects."""
        have = [(f"CK_HAVE_{isa.upper()}", None) for isa in ISAS]
        jobs = [(["dispatch.c", "memory.c"], "common", [], have)]
        for isa, flags in ISAS.items():
            for dtype in ("F32", "F64"):
                macros = [
                    ("CK_ISA", isa),
                    (f"CK_ISA_{isa.upper()}", None),
                    (f"CK_DTYPE_{dtype}", None),
                ]
                jobs.append((["kernels.c"], f"{isa}_{dtype.lower()}", flags, macros))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [name for names in pool.map(self.compile_with, jobs) for name in names]

    def compile_with(self, job):
        """Compile C files of csrc into an object folder of their own, unless they are there."""
        names, name, flags, macros = job
        flags = [*FLAGS, *WARNINGS, *flags]
        sources = [str(CSRC / name) for name in names]
        # Not in `build_temp`, which pip throws away.  What else decides about an object names it.
        command = repr((self.compiler.compiler_so, flags, macros))
        digest = hashlib.sha256(command.encode()).hexdigest()[:12]
        folder = Path("build", "kernels", f"{name}_{digest}")
        objects = self.compiler.object_filenames(sources, output_dir=str(folder))
        read = [str(path) for path in CSRC.glob("*.*")]
        if self.force or any(newer_group(read, kept) for kept in objects):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: an interrupted compiler may leave a part of an object.
            with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
                made = self.compiler.compile(
                    sources, output_dir=fresh, macros=macros, extra_postargs=flags
                )
                for new, kept in zip(made, objects, strict=True):
                    Path(kept).parent.mkdir(parents=True, exist_ok=True)
                    Path(new).replace(kept)
        return objects

    def find_openmp(self) -> list[str]:
        """Return the flags with which this compiler builds a program that uses OpenMP."""
        for flags in OPENMP:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "probe.c")
                source.write_text(OPENMP_PROBE)
                try:
                    objects = self.compiler.compile(
                        [str(source)], output_dir=folder, extra_postargs=flags
                    )
                    self.compiler.link_executable(
                        objects, "probe", output_dir=folder, extra_postargs=flags
                    )
                except (CompileError, LinkError):
                    continue
            return flags
        if os.environ.get("CONVKERN_REQUIRE_OPENMP") == "1":
            raise CompileError("CONVKERN_REQUIRE_OPENMP=1, but the compiler has no OpenMP")
        print("convkern: no OpenMP found; building without threads", file=sys.stderr)
        return []


extensions = [
    Extension(
        f"convkern._kernels.{name}",
        [f"convkern/_kernels/{name}.pyx"],
        include_dirs=[numpy.get_include(), "convkern/_kernels"],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        depends=[str(path) for path in CSRC.glob("*.*")],
    )
    for name in (
        "core",
        "activation",
        "bands",
        "blocks",
        "channels",
        "columns",
        "conv",
        "dense",
        "depthwise",
        "depthwise_gradient",
        "grad_input",
        "grad_weight",
        "images_last",
        "loss",
        "optimizer",
        "packing",
        "planes",
        "planes_gradient",
        "pointwise_gradient",
        "pool",
        "square",
        "strips",
        "winograd",
        "winograd_gradient",
    )
]

setup(ext_modules=cythonize(extensions), cmdclass={"build_ext": BuildKernels})
