"""Graph passes, one a file. Each takes a `GraphModule` and returns a `PassResult(graph_module, modified)`."""

from fxhash.passes.contract import graph_pass
from fxhash.passes.hash_parameters import hash_parameters
from fxhash.passes.lower_weights import lower_weights
from fxhash.passes.restore_parameters import restore_parameters
from fxhash.passes.restore_training_flags import restore_training_flags

__all__ = [
    "graph_pass",
    "hash_parameters",
    "lower_weights",
    "restore_parameters",
    "restore_training_flags",
]
