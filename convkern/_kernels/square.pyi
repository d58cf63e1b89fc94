import numpy as np

def square_planes(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    activation: int,
    slope: float,
    threads: int,
) -> None: ...
def square_gradients(
    x: np.ndarray,
    grad: np.ndarray,
    weight: np.ndarray,
    grad_input: np.ndarray | None,
    grad_weight: np.ndarray | None,
    grad_bias: np.ndarray | None,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    threads: int,
) -> None: ...
