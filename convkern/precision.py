"""How accurate float32 results must be: the levels, process-wide or for a block of code."""

from __future__ import annotations

from types import TracebackType

LEVELS = ("highest", "high")

_level = "high"


def get_float32_precision() -> str:
    """Return the level in force, ``"highest"`` or ``"high"``.

    Examples
    --------
    >>> import convkern
    >>> convkern.get_float32_precision()
    'high'
    """
    return _level


class set_float32_precision:  # noqa: N801  (a function that is also a context manager)
    """Say how accurate float32 convolutions must be, from now on in the whole process.

    ``"highest"``: direct sums, or Winograd tiles whose rounding errors are no larger
    than twice those of torch.  The result of a batch is bit for bit that of its images
    one by one.

    ``"high"``, the default: any algorithm whose error against float64, as the ratio of
    Euclidean norms, is at most 5e-6.

    float64 is always computed directly.

    Parameters
    ----------
    precision : {"highest", "high"}
        The level.  Used in a ``with`` statement, the one before comes back afterwards.

    Raises
    ------
    ValueError
        If there is no such level.

    Examples
    --------
    >>> import convkern
    >>> with convkern.set_float32_precision("highest"):
    ...     convkern.get_float32_precision()
    'highest'
    >>> convkern.get_float32_precision()
    'high'
    """

    def __init__(self, precision: str) -> None:
        global _level
        if not isinstance(precision, str) or precision not in LEVELS:
            accepted = " or ".join(map(repr, LEVELS))
            raise ValueError(f"precision must be {accepted}, got {precision!r}")
        self._before = _level
        _level = precision

    def __enter__(self) -> set_float32_precision:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _level
        _level = self._before
