"""Processes that train one net together: what each step adds up over them.

The loop knows a `Workers` only; `convkern.interop.mpi` has those that talk over MPI.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from convkern.nn import Layer

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


def same_start(net: Layer, workers: Workers) -> None:
    """Give all processes the parameters and buffers of the first, and choices of their own.

    The generators of other processes than the first are seeded anew from theirs, so that
    each drops out other activations.
    """
    if workers.size == 1:
        return
    arrays = [parameter.data for parameter in net.parameters()]
    for array in [*arrays, *(buffer for _, buffer in net.named_buffers())]:
        copy = array.copy() if workers.rank == 0 else np.zeros(array.shape, array.dtype)
        workers.add(copy)
        array[...] = copy
    for generator in net.generators():
        bits = generator.bit_generator
        if workers.rank:
            seed = np.random.SeedSequence([int(generator.integers(2**63)), workers.rank])
            bits.state = type(bits)(seed).state


def share_step(net: Layer, workers: Workers, images: int, sums: Array) -> Array:
    """Make the step of one process of what several have seen.

    The gradients and the running statistics of the layers become means over the images
    of all processes.  Everything travels in one array, as one message is faster than many.

    Parameters
    ----------
    net : Layer
        The net, whose gradients are sums over the images of this process.
    workers : Workers
        The processes.
    images : int
        How many this process has seen in the step, possibly none.
    sums : (S,) array
        Other numbers to add up.

    Returns
    -------
    (S,) array
        The sums of these numbers over the processes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear
    >>> from convkern.training.workers import Alone, share_step
    >>> net = Linear(2, 1)
    >>> net.weight.add_grad(3 * np.ones((1, 2), np.float32))  # the sum over three images
    >>> share_step(net, Alone(), 3, np.array([0.5]))
    array([0.5])
    >>> net.weight.grad
    array([[1., 1.]], dtype=float32)
    """
    parameters = net.parameters()
    buffers = [buffer for _, buffer in net.named_buffers()]
    used = np.array([parameter.has_grad for parameter in parameters])
    values = [parameter.grad for parameter in parameters] + [images * b for b in buffers]
    means = sum(value.size for value in values)
    dtype = np.result_type(np.float32, *(parameter.data.dtype for parameter in parameters))
    flat = np.concatenate([value.ravel() for value in values] + [[images], used, sums], dtype=dtype)
    workers.add(flat)
    flat[:means] /= flat[means]
    start = 0
    used = flat[means + 1 : -len(sums)]
    for parameter, count in zip(parameters, used, strict=True):
        stop = start + parameter.data.size
        if count:
            mean = flat[start:stop].reshape(parameter.data.shape)
            parameter.grad = mean.astype(parameter.data.dtype, copy=False)
        else:  # as alone, where an optimiser leaves it as it is
            parameter.zero_grad()
        start = stop
    for buffer in buffers:
        mean = flat[start : start + buffer.size].reshape(buffer.shape)
        # A counter is the same wherever there were images.
        buffer[...] = np.rint(mean) if buffer.dtype.kind == "i" else mean
        start += buffer.size
    return flat[-len(sums) :].astype(np.float64)
