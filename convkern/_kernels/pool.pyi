import numpy as np

def max_pool2d(
    x: np.ndarray,
    out: np.ndarray,
    indices: np.ndarray | None,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    channels_last: bool,
    threads: int,
) -> None: ...
def max_pool2d_backward(
    grad: np.ndarray, indices: np.ndarray, out: np.ndarray, threads: int
) -> None: ...
