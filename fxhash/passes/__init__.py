"""Graph passes, one a file. Each takes a `GraphModule` and returns a `PassResult(graph_module, modified)`."""

from fxhash.passes.contract import graph_pass
from fxhash.passes.hash_parameters import hash_parameters
from fxhash.passes.pipeline import LOWERING, TRAINING, lower, lower_to_train
from fxhash.passes.restore_parameters import restore_parameters
from fxhash.passes.restore_training_flags import restore_training_flags

__all__ = [
    "LOWERING",
    "TRAINING",
    "graph_pass",
    "hash_parameters",
    "lower",
    "lower_to_train",
    "restore_parameters",
    "restore_training_flags",
]
