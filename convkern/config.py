"""What this installation is and uses."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from convkern import _kernels
from convkern.precision import get_float32_precision
from convkern.threads import get_num_threads


def show_config(mode: str = "print") -> dict[str, Any] | None:
    """Print, or return, what was built and what is in use.

    Parameters
    ----------
    mode : {"print", "dicts"}
        ``"dicts"`` returns the information instead of printing it, as
        ``numpy.show_config`` does.

    Returns
    -------
    dict or None
        version; instruction_set in use and those available and built; openmp
        (a date, or None); threads; float32_precision; idle_bytes of kept memory; numpy, python
        and machine.

    Raises
    ------
    ValueError
        If `mode` is not one of the two.

    Examples
    --------
    >>> import convkern
    >>> config = convkern.show_config("dicts")
    >>> config["instruction_set"] in config["instruction_sets_available"]
    True
    """
    if mode not in ("print", "dicts"):
        raise ValueError(f"mode must be 'print' or 'dicts', got {mode!r}")
    from importlib.metadata import version  # slow to import, and needed only here

    config = {
        "version": version("convkern"),
        "instruction_set": _kernels.isa,
        "instruction_sets_available": _kernels.isa_names(),
        "instruction_sets_built": _kernels.isa_names(supported_only=False),
        "openmp": _kernels.openmp or None,
        "threads": get_num_threads(),
        "float32_precision": get_float32_precision(),
        "idle_bytes": _kernels.idle_bytes(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{key.replace('_', ' '):28}{shown}")
    return None


def empty_cache() -> None:
    """Return the memory that is kept for coming results to the system.

    Arrays that are in use are not touched.

    Examples
    --------
    >>> import convkern
    >>> convkern.empty_cache()
    >>> convkern.show_config("dicts")["idle_bytes"]
    0
    """
    _kernels.empty_cache()
