import numpy as np

class PackedConv:
    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray | None,
        groups: int,
        threads: int,
        winograd: int = 0,
        *,
        stride: int = 1,
        once: bool = False,
    ) -> None: ...
