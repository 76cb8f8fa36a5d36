"""Answers of the HTTP API as plain dictionaries, as the schemas of the API describe them."""

from __future__ import annotations

from typing import Any

from nextitem.serving.playground.abilities import abilities
from nextitem.serving.schemas import ModelAnswer, RefusedAnswer
from nextitem.serving.served_model import ServedModel
from nextitem.serving.service import Answer


def list_answer(answer: Answer, next_page: str | None = None) -> dict[str, Any]:
    """Return a list as schemas.ListAnswer describes it; fields without a value are left out."""
    result = answer.result
    items: list[dict[str, Any]] = [
        {"item_id": item, "score": score, "title": title}
        for item, score, title in zip(
            result.item_ids, result.scores, result.titles or map(str, result.item_ids), strict=True
        )
    ]
    for field, values in (("channel", result.channels), ("propensity", answer.propensities or ())):
        for item, value in zip(items, values, strict=False):
            item[field] = value
    optional = {
        "fallback_reason": answer.fallback_reason,
        "guided": result.guided,
        "explanation": None if result.explanation is None else result.explanation.to_json(),
        "next_page": next_page,
    }
    return {
        "request_id": answer.request_id,
        "model": answer.model.name,
        "version": answer.version,
        "items": items,
        "fallback": answer.fallback_reason is not None,
        "relaxed": list(result.relaxed),
        "skipped": list(result.skipped),
        "unknown_exclusions": list(result.unknown_exclusions),
        **{name: value for name, value in optional.items() if value is not None},
    }


def model_answer(model: ServedModel) -> ModelAnswer:
    """Return what the API tells about a model."""
    version = model.version
    refused = None if model.refused is None else RefusedAnswer(name=model.refused.name, reason=model.refused.reason)
    return ModelAnswer(
        name=model.name,
        kind=version.run.name,
        version=version.fingerprint,
        version_name=version.name,
        num_items=version.run.model.num_items,
        weight=model.weight,
        is_shadow=model.is_shadow,
        **abilities(version.run.model),
        refused=refused,
    )
