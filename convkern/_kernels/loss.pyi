import numpy as np

Cut = tuple[int, int, int]

def wrong_class(target: np.ndarray, count: int, ignored: int) -> int: ...
def class_losses(
    logs: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    cut: Cut,
    ignored: int,
    smoothing: float,
    losses: np.ndarray,
) -> None: ...
def class_loss(
    logs: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    cut: Cut,
    ignored: int,
    smoothing: float,
    mean: bool,
) -> float: ...
def class_weights(
    target: np.ndarray, weight: np.ndarray | None, cut: Cut, ignored: int
) -> float: ...
def subtract_shares(
    out: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    cut: Cut,
    ignored: int,
    smoothing: float,
    factors: np.ndarray,
) -> None: ...
def shares_of_samples(
    target: np.ndarray,
    weight: np.ndarray | None,
    cut: Cut,
    ignored: int,
    smoothing: float,
    factors: np.ndarray,
    sums: np.ndarray,
) -> None: ...
