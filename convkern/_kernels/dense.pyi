import numpy as np

def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray, threads: int
) -> None: ...
def activate(x: np.ndarray, y: np.ndarray, activation: int, slope: float, threads: int) -> None: ...
def local_response_norm(
    x: np.ndarray,
    y: np.ndarray,
    channels: int,
    window: int,
    alpha: float,
    beta: float,
    k: float,
    threads: int,
) -> None: ...
