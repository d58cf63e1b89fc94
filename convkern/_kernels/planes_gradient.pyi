import numpy as np

def planes_weight_gradient(
    x: np.ndarray,
    grad: np.ndarray,
    grad_weight: np.ndarray,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    groups: int,
    threads: int,
) -> None: ...
