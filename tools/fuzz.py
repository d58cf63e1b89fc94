"""Fuzz the readers of files: whatever a file holds, it is read or is a FormatError.

    pip install atheris
    python tools/fuzz.py READER [--runs N] [--seconds S] [--corpus FOLDER]

READER is a name in tests/readers.py, such as idx, tar, torch_pickle or png.  Atheris (libFuzzer)
changes the files there, guided by the lines of convkern, of Pillow and of the standard library's
parsers that they reach.  Another exception, a value that cannot be right, 2 GB of memory, 5 seconds
of processor time or two minutes for one file end the run with exit code 77 or so, and the file
is kept as ``READER-crash-...``.  Such a file is tried again by

    python tools/fuzz.py READER READER-crash-...
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

#: What is watched; modules of the standard library are loaded again for it.
WATCHED = ["convkern", "PIL", "gzip", "json", "pickletools", "tarfile", "zipfile"]
for module in [name for name in sys.modules if name.partition(".")[0] in WATCHED]:
    del sys.modules[module]
with atheris.instrument_imports(include=WATCHED):
    import PIL.Image
    from readers import READERS

    from convkern.errors import FormatError

#: Less than Pillow's limit, because it takes time to decode what a small file may declare.
PIXELS = 1 << 20
LONGEST = 1 << 14
SECONDS = 5
#: In memory if possible: writing is most of the time otherwise.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Fuzz a reader of files.")
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("file", nargs="?", help="try this file only")
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many files")
    parser.add_argument("--seconds", type=int, default=0, help="stop after so much time")
    parser.add_argument("--corpus", help="keep in this folder what has reached new lines")
    return parser.parse_args()


def main() -> None:
    """Run libFuzzer, which ends the process."""
    chosen = options()
    reader = READERS[chosen.reader]
    PIL.Image.MAX_IMAGE_PIXELS = PIXELS
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        file, seeds = Path(folder, "file"), Path(folder, "seeds")
        seeds.mkdir()
        for number, content in enumerate(reader.contents()):
            Path(seeds, f"{number}").write_bytes(content)

        def try_one(content: bytes) -> None:
            file.write_bytes(content)
            start = time.process_time()
            with suppress(FormatError):
                reader.check(reader.read(file))
            if time.process_time() - start > SECONDS:
                raise TimeoutError(f"more than {SECONDS} seconds")

        arguments = [sys.argv[0], f"-artifact_prefix={chosen.reader}-", "-print_final_stats=1"]
        arguments += ["-timeout=120", "-rss_limit_mb=2048", f"-max_len={LONGEST}"]
        if chosen.file:
            arguments += [chosen.file]
        else:
            arguments += [f"-atheris_runs={chosen.runs}", f"-max_total_time={chosen.seconds}"]
            arguments += [*([chosen.corpus] if chosen.corpus else []), str(seeds)]
        atheris.Setup(arguments, try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
