"""What a run has to remember to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.checkpoint import NET, load_training, part, save_training
from convkern.data import DataLoader
from convkern.errors import DAMAGE, FormatError, one_line
from convkern.nn import LRScheduler, Optimizer, Sequential
from convkern.nn.common import flag, real
from convkern.training.history import Epoch
from convkern.training.workers import Workers, anyone

Array = npt.NDArray[Any]
_OPTIMIZER = "optimizer."
#: What a training step adds up: losses, right answers and images.
TOTALS = 3


@dataclass
class State:
    """The parts of a run; `save` and `load` hold what each of them is at, and the history.

    Attributes
    ----------
    net, optimizer, schedule, loader, workers
        As for `convkern.training.fit`.
    recipe : dict
        What the caller wants to find in the checkpoint, as JSON holds it.
    history : list of Epoch
        The epochs that are done.
    totals : (TOTALS,) array
        The sums of the epoch that is under way.
    seconds : float
        How long its steps have taken.
    trained : bool
        Whether all its steps are made, and only its validation is missing.
    """

    net: Sequential
    optimizer: Optimizer
    schedule: LRScheduler | None
    loader: DataLoader
    workers: Workers
    recipe: dict[str, Any] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    totals: Array = field(default_factory=lambda: np.zeros(TOTALS))
    seconds: float = 0.0
    trained: bool = False

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one file.

        All processes call it and the first one writes; when it returns, the file is there.
        """
        own = [generator.bit_generator.state for generator in self.net.generators()]
        generators = self.workers.gather(json.dumps(own, default=np.ndarray.tolist))
        if self.workers.rank == 0:
            save_training(path, *self._pack([json.loads(states) for states in generators]))
        anyone(self.workers, False)  # waits for the first

    def _pack(self, generators: list[Any]) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return what a checkpoint holds as arrays, and what as JSON."""
        arrays = {f"{NET}{name}": array for name, array in self.net.state_dict().items()}
        options = {}
        for name, value in self.optimizer.state_dict().items():
            if isinstance(value, np.ndarray):
                arrays[f"{_OPTIMIZER}{name}"] = value
            else:
                options[name] = value
        values = {
            "version": 1,
            "recipe": self.recipe,
            "optimizer": options,
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "loader": self.loader.state_dict(),
            "generators": generators,
            "totals": self.totals.tolist(),
            "seconds": self.seconds,
            "trained": self.trained,
            "history": [asdict(epoch) for epoch in self.history],
        }
        return arrays, values

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote; a FormatError if it is damaged or of another run."""
        arrays, values = load_training(path)
        try:
            if values["version"] != 1:
                raise ValueError(f"version {values['version']!r}, of a newer convkern")
            self._load_generators(values["generators"])
            self.net.load_state_dict(part(arrays, NET))
            self.optimizer.load_state_dict({**part(arrays, _OPTIMIZER), **values["optimizer"]})
            if (self.schedule is None) != (values["schedule"] is None):
                raise ValueError("one of the two runs has no schedule")
            if self.schedule is not None:
                self.schedule.load_state_dict(values["schedule"])
            self.loader.load_state_dict(values["loader"])
            totals = np.asarray(values["totals"], np.float64)
            if totals.shape != (TOTALS,):
                raise ValueError(f"totals must be {TOTALS} numbers")
            self.totals, self.seconds = totals, real(values["seconds"], "seconds", 0)
            self.trained = flag(values["trained"], "trained")
            self.history = [Epoch.of(epoch) for epoch in values["history"]]
        except DAMAGE as error:
            message = f"{os.fspath(path)} is damaged or of another run: {one_line(error)}"
            raise FormatError(message) from error

    def _load_generators(self, saved: list[Any]) -> None:
        """Set the random generators of this process."""
        own = self.net.generators()
        if own and len(saved) != self.workers.size:
            raise ValueError(
                f"saved by {len(saved)} processes, whose random numbers {self.workers.size} "
                "cannot go on with"
            )
        states = saved[self.workers.rank] if own else []
        for generator, state in zip(own, states, strict=True):
            generator.bit_generator.state = state
