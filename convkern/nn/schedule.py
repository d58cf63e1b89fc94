"""Schedules: the learning rate of every group of an optimiser, epoch by epoch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

from convkern.geometry import integer
from convkern.nn.common import as_state, real, refuse_rest, take
from convkern.nn.optim import Optimizer


class LRScheduler(ABC):
    """The base of the schedules: define `rate`.

    A schedule is a function of the epoch, not of the rate before: it sets ``"lr"`` of every
    group when it is made and at every `step`.  Call `step` once an epoch, after the
    optimiser's steps.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates to set; those that it has now are the ones that `rate` starts from.

    Attributes
    ----------
    last_epoch : int
        How often `step` was called.
    base_lrs : list of float
        The rates of the groups when the schedule was made.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import SGD, LRScheduler, Parameter
    >>> class Warmup(LRScheduler):
    ...     def rate(self, base_lr, epoch):
    ...         return base_lr * min(1.0, (epoch + 1) / 4)
    >>> optimizer = SGD([Parameter(np.zeros(2))], lr=2.0)
    >>> schedule = Warmup(optimizer)
    >>> schedule.get_last_lr()
    [0.5]
    >>> schedule.step()
    >>> optimizer.param_groups[0]["lr"]
    1.0
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.last_epoch = 0
        self.base_lrs = self.get_last_lr()
        self._set_rates()

    @abstractmethod
    def rate(self, base_lr: float, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""

    def step(self) -> None:
        """Go to the next epoch."""
        self.last_epoch += 1
        self._set_rates()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of every group."""
        return [real(group["lr"], "lr", 0) for group in self.optimizer.param_groups]

    def _set_rates(self) -> None:
        """Give every group the rate of this epoch."""
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.rate(base_lr, self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the schedule stands, as JSON holds it; its arguments are not part of it."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned and set the rates of that epoch.

        Raises
        ------
        KeyError
            If names are missing or unexpected.
        TypeError, ValueError
            If a value is not accepted; nothing has changed then.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.nn import SGD, Parameter, StepLR
        >>> schedule = StepLR(SGD([Parameter(np.zeros(2))], lr=1.0), step_size=3, gamma=0.5)
        >>> schedule.load_state_dict({**schedule.state_dict(), "last_epoch": 6})
        >>> schedule.get_last_lr()
        [0.25]
        """
        left = as_state(state)
        epoch = integer(take(left, "last_epoch"), "last_epoch", 0)
        rates = take(left, "base_lrs")
        if not isinstance(rates, list) or len(rates) != len(self.base_lrs):
            raise ValueError(f"base_lrs must be a list of {len(self.base_lrs)}, got {rates!r}")
        base_lrs = [real(rate, "base_lrs", 0) for rate in rates]
        refuse_rest(left)
        self.last_epoch, self.base_lrs = epoch, base_lrs
        self._set_rates()


class StepLR(LRScheduler):
    """The rate times `gamma` every `step_size` epochs.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates to set.
    step_size : int
        At least 1.
    gamma : float
        Not negative.

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import SGD, Parameter, StepLR
    >>> schedule = StepLR(SGD([Parameter(np.zeros(2))], lr=1.0), step_size=2, gamma=0.5)
    >>> for _ in range(4):
    ...     schedule.step()
    >>> schedule.get_last_lr()
    [0.25]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = integer(step_size, "step_size", 1)
        self.gamma = real(gamma, "gamma", 0)
        super().__init__(optimizer)

    def rate(self, base_lr: float, epoch: int) -> float:
        """Return ``base_lr * gamma ** (epoch // step_size)``."""
        rate: float = base_lr * self.gamma ** (epoch // self.step_size)
        return rate


class MultiStepLR(LRScheduler):
    """The rate times `gamma` at each of some epochs.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates to set.
    milestones : iterable of int
        The epochs, in any order; one that is there twice counts twice.
    gamma : float
        Not negative.

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import SGD, MultiStepLR, Parameter
    >>> schedule = MultiStepLR(SGD([Parameter(np.zeros(2))], lr=1.0), [1, 3], gamma=0.5)
    >>> for _ in range(4):
    ...     schedule.step()
    ...     print(*schedule.get_last_lr())
    0.5
    0.5
    0.25
    0.25
    """

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones = sorted(integer(epoch, "milestones", 0) for epoch in milestones)
        self.gamma = real(gamma, "gamma", 0)
        super().__init__(optimizer)

    def rate(self, base_lr: float, epoch: int) -> float:
        """Return ``base_lr * gamma ** k`` after k milestones."""
        rate: float = base_lr * self.gamma ** bisect_right(self.milestones, epoch)
        return rate


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the first rate down to `eta_min` in `T_max` epochs, and up again.

    Source: Loshchilov and Hutter, *SGDR: stochastic gradient descent with warm restarts*, 2017,
    without the restarts.

    Parameters
    ----------
    optimizer : Optimizer
        Whose rates to set.
    T_max : int
        At least 1.
    eta_min : float
        Not negative.

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import SGD, CosineAnnealingLR, Parameter
    >>> schedule = CosineAnnealingLR(SGD([Parameter(np.zeros(2))], lr=1.0), T_max=4)
    >>> for _ in range(4):
    ...     schedule.step()
    ...     print(round(schedule.get_last_lr()[0], 3))
    0.854
    0.5
    0.146
    0.0
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = integer(T_max, "T_max", 1)
        self.eta_min = real(eta_min, "eta_min", 0)
        super().__init__(optimizer)

    def rate(self, base_lr: float, epoch: int) -> float:
        """Return ``eta_min + (base_lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2``."""
        share = (1 + math.cos(math.pi * epoch / self.T_max)) / 2
        return self.eta_min + (base_lr - self.eta_min) * share
