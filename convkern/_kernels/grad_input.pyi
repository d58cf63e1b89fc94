from typing import Any

import numpy as np

Axis = tuple[int, int, int, int]

def dense_taps(
    dtype: np.dtype[Any], channels: int, rows: Axis, columns: Axis, groups: int
) -> tuple[int, int]: ...
def input_gradient(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    rows: Axis,
    columns: Axis,
    groups: int,
    channels_last: bool,
    threads: int,
    winograd: int = 0,
) -> None: ...
