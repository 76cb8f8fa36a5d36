"""What a page may offer to change in a request, by the abilities of a model."""

from __future__ import annotations

from typing import Any

from nextitem.cascade.cascade import Cascade
from nextitem.core.recommender import Recommender
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.models.rankers.ranking_model import RankingModel


def abilities(model: Recommender) -> dict[str, Any]:
    """Return the fields of ModelAnswer that say what a request can change: guide, objectives and semantic IDs."""
    guidance = model.guidance if isinstance(model, GuidedRecommender) else None
    identifiers = model.catalog.identifiers
    ranker = model.ranker if isinstance(model, Cascade) else model
    tasks = ranker.tasks if isinstance(ranker, RankingModel) else ()
    return {
        "has_guide": guidance is not None,
        "guide_weight": None if guidance is None else round(guidance.chosen_use.weight, 6),
        "objectives": list(tasks) if len(tasks) > 1 else [],
        "num_levels": None if identifiers is None else identifiers.num_levels,
    }
