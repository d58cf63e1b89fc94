import numpy as np

class PackedConv:
    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None, groups: int, threads: int
    ) -> None: ...

def conv2d(
    x: np.ndarray,
    packed: PackedConv,
    out: np.ndarray,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    activation: int,
    slope: float,
    channels_last: bool,
    threads: int,
) -> None: ...
