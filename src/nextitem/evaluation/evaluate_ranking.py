"""evaluate_ranking: figures of scores given to what was shown (`impressions` protocol)."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.evaluation.evaluate import Evaluation
from nextitem.evaluation.metrics import ranking


def evaluate_ranking(
    scores: Jagged, requests: SequenceBatch, *, label: str, model_name: str = "", refit: bool = False
) -> Evaluation:
    """AUC, GAUC, log-loss, normalised entropy and calibration error of `scores` against the candidates' labels.

    `scores` shares the candidates' offsets and holds probabilities; where any score lies outside 0..1, the last three
    are left out. A label above 0 is positive. GAUC is over users, for requests of unknown users over the requests
    themselves, that have both labels. A figure that is not defined (no group has both labels) is NaN, null in JSON.
    `slices` says what was judged: {"judged by gauc": {"users": groups}, "left out of gauc": {"users": groups}}.
    `users` counts requests.
    """
    if requests.candidates is None or label not in requests.candidate_labels:
        raise ValueError(f"no label {label!r}; the candidates have: {', '.join(requests.candidate_labels) or 'none'}")
    if not torch.equal(scores.offsets, requests.candidates.offsets):
        count = len(requests.candidates.values)
        raise ValueError(f"scores must share the candidates' offsets: {count} scores, got {len(scores.values)}")
    if not bool(scores.values.isfinite().all()):
        raise ValueError("scores must be finite")
    labels = requests.candidate_labels[label].values > 0
    groups = ranking_groups(requests)
    mean, left_out = ranking.gauc(scores.values, labels, groups)
    metrics = {"auc": ranking.auc(scores.values, labels), "gauc": mean}
    if bool(((scores.values >= 0) & (scores.values <= 1)).all()):
        metrics["log_loss"] = ranking.log_loss(scores.values, labels)
        metrics["normalised_entropy"] = ranking.normalised_entropy(scores.values, labels)
        metrics["calibration_error"] = ranking.calibration_error(scores.values, labels)
    judged = int(torch.unique(groups).numel()) - left_out
    return Evaluation(
        model=model_name,
        protocol="impressions",
        refit=refit,
        users=requests.num_requests,
        metrics=metrics,
        intervals={},
        slices={"judged by gauc": {"users": judged}, "left out of gauc": {"users": left_out}},
    )


def ranking_groups(requests: SequenceBatch) -> Tensor:
    """What each candidate is grouped by, [T] int64: its user, else (below 0) its request."""
    assert requests.candidates is not None
    request = requests.candidates.row_ids()
    if requests.user_ids is None:
        return -1 - request
    users = requests.user_ids[request]
    return torch.where(users > 0, users, -1 - request)
