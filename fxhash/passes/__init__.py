"""Graph passes, one a file. Each takes a `GraphModule` and returns a `PassResult(graph_module, modified)`."""

from fxhash.passes.contract import graph_pass
from fxhash.passes.generate_on_demand import generate_on_demand
from fxhash.passes.hash_parameters import hash_parameters
from fxhash.passes.restore_parameters import restore_parameters
from fxhash.passes.restore_training_flags import restore_training_flags

__all__ = [
    "generate_on_demand",
    "graph_pass",
    "hash_parameters",
    "restore_parameters",
    "restore_training_flags",
]
