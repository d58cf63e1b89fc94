import numpy as np

SHORT_ROWS: int

class ShortWeight:
    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None, exponents: np.ndarray, threads: int
    ) -> None: ...

def short_linear(
    x: np.ndarray,
    weight: ShortWeight,
    out: np.ndarray,
    activation: int,
    slope: float,
    threads: int,
) -> None: ...
def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray, threads: int
) -> None: ...
def linear_input_gradient(
    grad: np.ndarray, weight: np.ndarray, out: np.ndarray, threads: int
) -> None: ...
def linear_weight_gradient(
    grad: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int
) -> None: ...
