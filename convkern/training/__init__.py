"""Training: the loop, its checkpoints and pictures, and the recipes of the command line.

`fit` trains a net and can be stopped and resumed at any batch without a change of the
result; `evaluate` counts what a net gets right.
"""

from convkern.errors import Interrupted
from convkern.training.evaluation import Evaluation, evaluate
from convkern.training.history import Epoch
from convkern.training.loop import fit

__all__ = ["Epoch", "Evaluation", "Interrupted", "evaluate", "fit"]
