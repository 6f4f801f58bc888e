"""Training of image classifiers, dense or compressed: data sets, recipes, resumable runs, reports on them.

`Compress` is a callback for LightningModules of your own.

Needs the extra `train`: PyTorch Lightning runs the loop. Each name is imported when it is first asked for, so that the
command can read the fields of a recipe, which are its options, without importing torch and Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxhash.training.compress import Compress
    from fxhash.training.data import ImageData, load_data
    from fxhash.training.finished import FinishedRun, evaluate, export, load_run, measure_latency
    from fxhash.training.options import RunOptions, RunResult
    from fxhash.training.recipe import Recipe, load_recipe, recipe_names
    from fxhash.training.report.document import write_report
    from fxhash.training.run import resume, train
    from fxhash.training.site.page import export_site

__all__ = [
    "Compress",
    "FinishedRun",
    "ImageData",
    "Recipe",
    "RunOptions",
    "RunResult",
    "evaluate",
    "export",
    "export_site",
    "load_data",
    "load_recipe",
    "load_run",
    "measure_latency",
    "recipe_names",
    "resume",
    "train",
    "write_report",
]

_NAMES_BY_FILE = {
    "compress": ("Compress",),
    "data": ("ImageData", "load_data"),
    "finished": ("FinishedRun", "evaluate", "export", "load_run", "measure_latency"),
    "options": ("RunOptions", "RunResult"),
    "recipe": ("Recipe", "load_recipe", "recipe_names"),
    "report.document": ("write_report",),
    "run": ("resume", "train"),
    "site.page": ("export_site",),
}


def __getattr__(name: str) -> Any:
    for file, names in _NAMES_BY_FILE.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
