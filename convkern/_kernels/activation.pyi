import numpy as np

def activate(
    x: np.ndarray,
    y: np.ndarray,
    activation: int,
    slope: float,
    threads: int,
    grad: np.ndarray | None = None,
) -> None: ...
def add(
    a: np.ndarray, b: np.ndarray, y: np.ndarray, activation: int, slope: float, threads: int
) -> None: ...
def prelu(
    x: np.ndarray,
    weight: np.ndarray,
    y: np.ndarray,
    cut: tuple[int, int, int],
    threads: int,
    grad: np.ndarray | None = None,
) -> None: ...
def softmax(
    x: np.ndarray,
    y: np.ndarray,
    cut: tuple[int, int, int],
    threads: int,
    grad: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    logs: bool = False,
) -> None: ...
