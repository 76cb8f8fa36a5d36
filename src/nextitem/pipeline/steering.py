"""Steering: a trained model with another weight of its guide, or ordering by another of its objectives."""

from __future__ import annotations

from copy import copy

from nextitem.cascade.cascade import Cascade
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import HasObjectives
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.models.rankers.ranking_model import RankingModel


def with_guide_weight(model: Recommender, weight: float) -> Recommender:
    """Return the model with another weight of its guide, 0 (the generator alone) to 1; both share their weights.

    Raises UserError if the model has no guide, or if the weight is out of its range.
    """
    if not isinstance(model, GuidedRecommender) or model.guidance is None:
        raise UserError(
            f"guide_weight: {type(model).__name__} has no guide; remove it, or train a generator with model.guide"
        )
    if not 0 <= weight <= 1:
        raise UserError(f"guide_weight must be 0 to 1, got {weight:g}")
    return model.steered(weight=weight)


def objectives_of(model: Recommender) -> tuple[str, ...]:
    """Return the names of the objectives by which a model can order.

    They are those of a generator (roles.HasObjectives), or the tasks of a ranker, also of a cascade's.
    """
    if isinstance(model, Cascade):
        return objectives_of(model.ranker) if model.ranker is not None else ()
    if isinstance(model, HasObjectives):
        return model.objectives
    return model.tasks if isinstance(model, RankingModel) else ()


def ordered_by(model: Recommender, objective: str) -> Recommender:
    """Return the model with lists that one objective alone orders; both share their weights.

    The score is the log-probability of that objective; of a generator, that of the item if the objective is what
    happens next. Raises UserError if the model has no such objective.
    """
    names = objectives_of(model)
    if objective not in names:
        problem = f"there are {', '.join(names)}" if names else f"{type(model).__name__} has none; remove it"
        raise UserError(f"objective: no objective is called {objective!r}; {problem}")
    if isinstance(model, HasObjectives):
        return model.ordered_by(objective)
    other = copy(model)
    if isinstance(model, Cascade):
        assert model.ranker is not None, "it has objectives"
        other._modules = {**model._modules, "ranker": ordered_by(model.ranker, objective)}
    else:
        other.config = model.config.model_copy(update={"order_by": {objective: 1.0}})
    return other
