"""How many threads the kernels use.

The count is chosen once, at import: ``CONVKERN_NUM_THREADS``, else
``OMP_NUM_THREADS``, else as many as this process may run on (its CPU affinity
and its cgroup's quota).  Results never depend on it.
"""

from __future__ import annotations

import os
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType

from convkern.geometry import integer

#: More threads than this are refused as a mistake.
MOST_THREADS = 1024

_default = 1
_forked = False
_override: ContextVar[int | None] = ContextVar("convkern_num_threads", default=None)


def get_num_threads() -> int:
    """Return the number of threads that a call made here would use at the most.

    Returns
    -------
    int
        At least 1.  A child of ``os.fork`` works on one thread, because
        OpenMP's threads do not survive a fork.

    Examples
    --------
    >>> import convkern
    >>> with convkern.num_threads(2):
    ...     convkern.get_num_threads()
    2
    """
    if _forked:
        return 1
    return _override.get() or _default


def set_num_threads(n: int) -> None:
    """Set the number of threads of this process.

    Parameters
    ----------
    n : int
        From 1 to 1024; more than there are processors is allowed.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.

    Examples
    --------
    >>> import convkern
    >>> before = convkern.get_num_threads()
    >>> convkern.set_num_threads(1)
    >>> convkern.get_num_threads()
    1
    >>> convkern.set_num_threads(before)
    """
    global _default
    _default = _checked(n)


class num_threads:  # noqa: N801  (a context manager that reads as a function)
    """Use `n` threads inside a ``with`` block, in this thread or task only.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.

    Examples
    --------
    >>> import convkern
    >>> with convkern.num_threads(1):
    ...     convkern.get_num_threads()
    1
    """

    def __init__(self, n: int) -> None:
        self.n = _checked(n)
        self._tokens: list[Token[int | None]] = []

    def __enter__(self) -> num_threads:
        self._tokens.append(_override.set(self.n))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _override.reset(self._tokens.pop())


def _checked(n: int) -> int:
    n = integer(n, "number of threads", 1)
    if n > MOST_THREADS:
        raise ValueError(f"number of threads must be at most {MOST_THREADS}, got {n}")
    return n


def _from_environment() -> int | None:
    """Return the count that the environment asks for; what is not a sensible count is ignored."""
    for name in ("CONVKERN_NUM_THREADS", "OMP_NUM_THREADS"):
        # OpenMP allows a list, one count per nesting level; the first is ours.
        text = os.environ.get(name, "").split(",")[0].strip()
        if text.isascii() and text.isdigit() and int(text) > 0:
            return min(int(text), MOST_THREADS)
    return None


def _available_processors() -> int:
    """Return how many processors this process may use at once."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, count if quota is None else min(count, quota))


def _cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the CPU quota in whole processors, rounded up, or None without one.

    It is the least of those of this process's control group and of the groups around it.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    # Lines are "number:controllers:/path"; inside a container the path may not exist.
    paths = {line.split(":", 2)[-1].strip("/") for line in lines}
    folders = {folder for path in paths for folder in (Path(path), *Path(path).parents)}
    quotas = (_quota_of(root, folder) for folder in folders | {Path()})
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(root: Path, group: Path) -> int | None:
    """Return the quota of one control group, or None without one."""
    try:
        quota, period = (root / group / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            base = root / "cpu" / group  # version 1
            quota = (base / "cpu.cfs_quota_us").read_text().strip()
            period = (base / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" or -1: no limit
    return -(-int(quota) // int(period))


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


_default = _from_environment() or min(_available_processors(), MOST_THREADS)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
