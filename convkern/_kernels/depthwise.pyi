import numpy as np

def depthwise_planes(
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
