"""Processes that train one net together, over MPI (the extra ``convkern[mpi]``)."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from convkern.errors import Interrupted, import_extra, one_line

#: What is told in one line; everything else with the place where it happened.
_EXPECTED = (OSError, ValueError, ImportError, MemoryError, ArithmeticError, KeyboardInterrupt)


class MPIWorkers:
    """The processes that ``mpiexec`` has started, for the `workers` of `convkern.training.fit`.

    As a context: an error in one process ends all of them, which would otherwise
    wait for it for ever.  `Interrupted` does not, as `fit` raises it in all.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        By default all processes.

    Attributes
    ----------
    rank : int
        The number of this process.
    size : int
        How many there are.

    Raises
    ------
    ImportError
        If mpi4py, or the MPI library that it needs, is not installed.

    Examples
    --------
    In a program that runs as ``mpiexec -n 2 python program.py``::

        with MPIWorkers() as workers:
            shard = (workers.rank, workers.size)
            loader = DataLoader(dataset, 64, shuffle=True, rng=0, shard=shard)
            fit(net, loader, optimizer, epochs=5, workers=workers)
    """

    def __init__(self, comm: Any = None) -> None:
        self._mpi = import_extra("mpi4py.MPI", "mpi")
        self._comm = self._mpi.COMM_WORLD if comm is None else comm
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()

    def add(self, values: npt.NDArray[Any]) -> None:
        """Put the sums over all processes in the place of `values`, a contiguous array."""
        self._comm.Allreduce(self._mpi.IN_PLACE, np.reshape(values, -1))

    def gather(self, text: str) -> list[str]:
        """Return the texts of all processes in the first, nothing in the others."""
        return self._comm.gather(text) or []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, Interrupted) or self.size == 1:
            return
        if not isinstance(error, _EXPECTED):
            traceback.print_exception(error)
        print(f"convkern: error in process {self.rank}: {one_line(error)}", file=sys.stderr)
        sys.stderr.flush()
        self._comm.Abort(2)
