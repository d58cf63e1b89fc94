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
    """

    session: Callable[[int], AbstractContextManager[Prepare]]
    packages: tuple[str, ...]
    computes: tuple[str, ...]
    program: str = ""

    def is_installed(self) -> bool:
        """Tell whether everything is there that it needs."""
        return all(map(importlib.util.find_spec, self.packages)) and (
            not self.program or shutil.which(self.program) is not None
        )


_OPERATORS = ("forward", "pool", "linear", "alexnet")

#: Adding a peer is adding an entry.
PEERS = {
    "torch": Peer(torch_peers.eager, ("torch",), (*_OPERATORS, "backward", "train")),
    "torch-jit": Peer(torch_peers.jit, ("torch",), ("alexnet",)),
    "torch-compile": Peer(torch_peers.compiled, ("torch",), ("alexnet",), "g++"),
    "onnxruntime": Peer(onnx_peers.onnx_runtime, ("onnxruntime", "onnx"), _OPERATORS),
    "openvino": Peer(onnx_peers.open_vino, ("openvino", "onnx"), _OPERATORS),
}
