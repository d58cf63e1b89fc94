"""Training: the loop, its checkpoints and pictures, and the recipes of the command line.

`fit` trains a net and can be stopped and resumed at any batch without a change of the
result; `evaluate` counts what a net gets right.
"""

from convkern.training.evaluation import Evaluation, evaluate
from convkern.training.loop import Interrupted, fit
from convkern.training.state import Epoch

__all__ = ["Epoch", "Evaluation", "Interrupted", "evaluate", "fit"]
