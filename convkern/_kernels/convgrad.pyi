import numpy as np

Axis = tuple[int, int, int, int]

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
) -> None: ...
def weight_gradient(
    x: np.ndarray,
    grad: np.ndarray,
    grad_weight: np.ndarray | None,
    grad_bias: np.ndarray | None,
    rows: Axis,
    columns: Axis,
    groups: int,
    channels_last: bool,
    threads: int,
) -> None: ...
