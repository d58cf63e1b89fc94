"""The processes that train a net together, seen from the loop; here, a process alone.

`convkern.interop.mpi` has those that talk over MPI.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Workers(Protocol):
    """What the loop asks of the processes that share a batch.

    All of them must call the same functions in the same order.

    Attributes
    ----------
    rank : int
        The number of this process; 0 logs and saves.
    size : int
        How many there are.
    """

    rank: int
    size: int

    def add(self, values: Array) -> None:
        """Put the sums over all processes in the place of `values`, a contiguous array."""

    def gather(self, text: str) -> list[str]:
        """Return the texts of all processes, by rank; other ranks than 0 may get none."""


class Alone:
    """One process: sums are what it has.

    Examples
    --------
    >>> from convkern.training.workers import Alone
    >>> Alone().gather("state")
    ['state']
    """

    rank = 0
    size = 1

    def add(self, values: Array) -> None:
        """Leave `values` as they are."""

    def gather(self, text: str) -> list[str]:
        """Return the only text."""
        return [text]


def anyone(workers: Workers, wanted: bool) -> bool:
    """Tell whether something is wanted in any process."""
    count = np.array([float(wanted)])
    workers.add(count)
    return bool(count[0])
