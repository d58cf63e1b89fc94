"""Who convkern is measured against: other libraries, on the same threads and numbers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeAlias

from convkern.bench import onnx_peers, torch_peers
from convkern.bench.cases import Call, Case

#: Gives calls, by name, that compute what a case does.
Prepare: TypeAlias = Callable[[Case], dict[str, Call]]


class Peer(NamedTuple):
    """A library, or a way to use it.

    Attributes
    ----------
    session : callable
        Takes the number of threads and returns a context manager that gives a `Prepare`.
    packages : tuple of str
        What must be installed.
    computes : tuple of str
        The choices of ``--what`` that it takes part in.
    program : str
        A program that it starts, if any.
    instruction_set : callable or None
        Tells which one it uses; None if it takes the processor's best and cannot be held to less.
    """

    session: Callable[[int], AbstractContextManager[Prepare]]
    packages: tuple[str, ...]
    computes: tuple[str, ...]
    program: str = ""
    instruction_set: Callable[[], str] | None = None

    def is_installed(self) -> bool:
        """Tell whether everything is there that it needs."""
        return all(map(importlib.util.find_spec, self.packages)) and (
            not self.program or shutil.which(self.program) is not None
        )


_OPERATORS = ("forward", "linear", "alexnet")


def _torch(
    session: Callable[[int], AbstractContextManager[Prepare]],
    computes: tuple[str, ...] = ("alexnet",),
    program: str = "",
) -> Peer:
    """Return one of the ways to use torch."""
    return Peer(session, ("torch",), computes, program, torch_peers.instruction_set)


#: Adding a peer is adding an entry.
PEERS = {
    "torch": _torch(torch_peers.eager, (*_OPERATORS, "backward", "pool", "train")),
    "torch-jit": _torch(torch_peers.jit),
    "torch-compile": _torch(torch_peers.compiled, program="g++"),
    "onnxruntime": Peer(onnx_peers.onnx_runtime, ("onnxruntime", "onnx"), _OPERATORS),
    "openvino": Peer(onnx_peers.open_vino, ("openvino", "onnx"), _OPERATORS),
}

#: For ``--isa``: what holds convkern, and torch with the libraries in it, to an instruction set.
#: All of them look at the environment once, when they are loaded.
HELD = {
    "avx2": {
        "CONVKERN_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
