"""nextitem: from an interaction log to a recommender.

    import nextitem as ni

    data = ni.load_dataset("shop")              # or a folder; ni.Dataset.from_frames(interactions=frame)
    run = ni.train("sasrec", data, out="runs/sasrec", settings={"model.width": 128})
    run.recommend(history=["10001", "10042"], k=10)
    run.recommend_many(k=10)                    # a data frame: user_id, item_id, score, rank
    ni.evaluate(run)

The names in `__all__` are stable. A mistake of the caller raises UserError, whose message names the mistake, its place
and the way out. A model that breaks its contract raises ContractError.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextitem.core.dataset import Dataset
    from nextitem.core.errors import ContractError, UserError
    from nextitem.core.registry import models
    from nextitem.data.describe import describe
    from nextitem.data.download import download
    from nextitem.data.importers.importing import import_dataset
    from nextitem.data.readers import load_dataset
    from nextitem.evaluation.diagnose import Diagnosis, diagnose
    from nextitem.evaluation.evaluate import Evaluation
    from nextitem.pipeline.align import Alignment, align
    from nextitem.pipeline.compare import Comparison, compare
    from nextitem.pipeline.evaluate import evaluate
    from nextitem.pipeline.export import export
    from nextitem.pipeline.hub import pull, push
    from nextitem.pipeline.recommend import RecommendationList
    from nextitem.pipeline.runs import Run, load_run
    from nextitem.pipeline.scale import scale
    from nextitem.pipeline.scaling.outcome import Scaling
    from nextitem.pipeline.tokenize import tokenize
    from nextitem.pipeline.train import train
    from nextitem.pipeline.tune import tune
    from nextitem.pipeline.tuning.outcome import Tuning
    from nextitem.pipeline.updating.new_version import UpdateConfig
    from nextitem.pipeline.updating.update import UpdateOutcome, update
    from nextitem.pipeline.updating.version_store import rollback
    from nextitem.serving.updater import update_from_store

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "Comparison",
    "ContractError",
    "Dataset",
    "Diagnosis",
    "Evaluation",
    "RecommendationList",
    "Run",
    "Scaling",
    "Tuning",
    "UpdateConfig",
    "UpdateOutcome",
    "UserError",
    "align",
    "compare",
    "describe",
    "diagnose",
    "download",
    "evaluate",
    "export",
    "import_dataset",
    "load_dataset",
    "load_run",
    "models",
    "pull",
    "push",
    "rollback",
    "scale",
    "tokenize",
    "train",
    "tune",
    "update",
    "update_from_store",
]

_MODULES = {
    "Alignment": "pipeline.align",
    "Comparison": "pipeline.compare",
    "ContractError": "core.errors",
    "Dataset": "core.dataset",
    "Diagnosis": "evaluation.diagnose",
    "Evaluation": "evaluation.evaluate",
    "RecommendationList": "pipeline.recommend",
    "Run": "pipeline.runs",
    "Scaling": "pipeline.scaling.outcome",
    "Tuning": "pipeline.tuning.outcome",
    "UpdateConfig": "pipeline.updating.new_version",
    "UpdateOutcome": "pipeline.updating.update",
    "UserError": "core.errors",
    "align": "pipeline.align",
    "compare": "pipeline.compare",
    "describe": "data.describe",
    "diagnose": "evaluation.diagnose",
    "download": "data.download",
    "evaluate": "pipeline.evaluate",
    "export": "pipeline.export",
    "import_dataset": "data.importers.importing",
    "load_dataset": "data.readers",
    "load_run": "pipeline.runs",
    "scale": "pipeline.scale",
    "pull": "pipeline.hub",
    "push": "pipeline.hub",
    "rollback": "pipeline.updating.version_store",
    "tokenize": "pipeline.tokenize",
    "train": "pipeline.train",
    "tune": "pipeline.tune",
    "update": "pipeline.updating.update",
    "update_from_store": "serving.updater",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `nextitem --help` must not pay for it.
    if name == "models":
        return import_module("nextitem.models")  # this package can be called like a function
    if name in _MODULES:
        return getattr(import_module(f"nextitem.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'nextitem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
