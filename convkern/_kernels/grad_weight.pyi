import numpy as np

Axis = tuple[int, int, int, int]

def weight_gradient(
    x: np.ndarray,
    grad: np.ndarray,
    grad_weight: np.ndarray,
    rows: Axis,
    columns: Axis,
    groups: int,
    channels_last: bool,
    threads: int,
    winograd: int = 0,
    turned: bool = False,
    grad_bias: np.ndarray | None = None,
) -> bool: ...
