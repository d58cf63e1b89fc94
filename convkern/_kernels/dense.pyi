import numpy as np

def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray, threads: int
) -> None: ...
def linear_input_gradient(
    grad: np.ndarray, weight: np.ndarray, out: np.ndarray, threads: int
) -> None: ...
def linear_weight_gradient(
    grad: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int
) -> None: ...
