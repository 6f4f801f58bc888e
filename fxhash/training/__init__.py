"""Training of image classifiers, dense or compressed: data sets, recipes, resumable runs, reports on them.

Needs the extra `train`: PyTorch Lightning runs the loop.
"""

from fxhash.training.data import ImageData, load_data
from fxhash.training.finished import evaluate, export, measure_latency
from fxhash.training.folder import RunOptions, RunResult
from fxhash.training.recipe import Recipe, load_recipe, recipe_names
from fxhash.training.report.document import write_report
from fxhash.training.run import resume, train

__all__ = [
    "ImageData",
    "Recipe",
    "RunOptions",
    "RunResult",
    "evaluate",
    "export",
    "load_data",
    "load_recipe",
    "measure_latency",
    "recipe_names",
    "resume",
    "train",
    "write_report",
]
