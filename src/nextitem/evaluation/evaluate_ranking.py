"""evaluate_ranking: figures of scores given to what was shown (`impressions` protocol)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.core.roles import Ranker
from nextitem.evaluation.evaluate import Evaluation, num_users
from nextitem.evaluation.intervals import auc_interval
from nextitem.evaluation.metrics import ranking


def evaluate_ranker(
    model: Ranker, requests: SequenceBatch, *, model_name: str = "", refit: bool = False, progress: bool = False
) -> Evaluation:
    """Figures of a ranker on what was shown: each of its tasks against the label of that name.

    A ranker that does not name its tasks is judged by the first label. Figures of further tasks carry their name,
    auc_purchase. UserError where no task has a label.
    """
    scores = score_all(model, requests, progress=progress)
    labels = list(requests.candidate_labels)
    judged = [task for task in scores if task in labels]
    if not judged and len(scores) == 1 and labels:
        scores, judged = {labels[0]: next(iter(scores.values()))}, labels[:1]
    if not judged:
        raise UserError(f"the model scores {', '.join(scores)}, and impressions have the labels {', '.join(labels)}")
    first, *others = [
        evaluate_ranking(scores[task], requests, label=task, model_name=model_name, refit=refit) for task in judged
    ]
    for task, figures in zip(judged[1:], others, strict=True):
        first.metrics.update({f"{name}_{task}": value for name, value in figures.metrics.items()})
        first.intervals.update({f"{name}_{task}": value for name, value in figures.intervals.items()})
    return first


@torch.inference_mode()
def score_all(
    model: Ranker, requests: SequenceBatch, *, batch_size: int = 1024, progress: bool = False
) -> dict[str, Jagged]:
    """Task -> a score for each candidate of the requests, with the candidates' offsets."""
    assert requests.candidates is not None, "requests must have candidates"
    batches: Iterable[SequenceBatch] = requests.split(batch_size)
    console = Console(stderr=True)
    if progress and console.is_terminal:
        total = -(-requests.num_requests // batch_size)
        batches = track(batches, "scoring", total=total, console=console, transient=True)
    parts: dict[str, list[Tensor]] = {}
    device = next(iter(model.buffers())).device if isinstance(model, nn.Module) else torch.device("cpu")
    for batch in batches:
        assert batch.candidates is not None
        for task, padded in model.score(batch.to(device)).items():
            parts.setdefault(task, []).append(Jagged.from_padded(padded.cpu(), batch.candidates.lengths).values)
    return {task: requests.candidates.with_values(torch.cat(values)) for task, values in parts.items()}


def quick_auc(model: Ranker, requests: SequenceBatch) -> float:
    """Return one figure, for choosing an epoch: the AUC of the first task; NaN if all its labels are alike."""
    first = next(iter(score_all(model, requests).items()))
    labels = requests.candidate_labels
    values = labels[first[0] if first[0] in labels else next(iter(labels))].values
    has_label = ~values.isnan()
    return ranking.auc(first[1].values[has_label], values[has_label] > 0)


def evaluate_ranking(
    scores: Jagged, requests: SequenceBatch, *, label: str, model_name: str = "", refit: bool = False
) -> Evaluation:
    """AUC, GAUC, log-loss, normalised entropy and calibration error of `scores` against the candidates' labels.

    `scores` shares the candidates' offsets and holds probabilities; where any score lies outside 0..1, the last
    three are left out. The interval of AUC is a bootstrap over the groups of GAUC. A label above 0 is positive;
    candidates whose label is not known (NaN) are left out. GAUC is over users, for requests of unknown users over
    the requests themselves, that have both labels. A figure that is not defined (no group has both labels) is NaN,
    null in JSON. `slices` says what was judged: {"judged by gauc":
    {"groups": n}, "left out of gauc": {"groups": n}}. Requests without a known label are not counted.
    """
    if requests.candidates is None or label not in requests.candidate_labels:
        raise ValueError(f"no label {label!r}; the candidates have: {', '.join(requests.candidate_labels) or 'none'}")
    if not torch.equal(scores.offsets, requests.candidates.offsets):
        count = len(requests.candidates.values)
        raise ValueError(f"scores must share the candidates' offsets: {count} scores, got {len(scores.values)}")
    if not bool(scores.values.isfinite().all()):
        raise ValueError("scores must be finite")
    has_label = ~requests.candidate_labels[label].values.isnan()
    if not bool(has_label.any()):
        raise UserError(f"label {label!r} is not known of any candidate that is judged; fill it in or judge others")
    values, labels = scores.values[has_label], requests.candidate_labels[label].values[has_label] > 0
    groups = ranking_groups(requests)[has_label]
    mean, left_out = ranking.gauc(values, labels, groups)
    metrics = {"auc": ranking.auc(values, labels), "gauc": mean}
    if bool(((values >= 0) & (values <= 1)).all()):
        metrics["log_loss"] = ranking.log_loss(values, labels)
        metrics["normalised_entropy"] = ranking.normalised_entropy(values, labels)
        metrics["calibration_error"] = ranking.calibration_error(values, labels)
    rows = torch.unique(requests.candidates.row_ids()[has_label])
    judged = int(torch.unique(groups).numel()) - left_out
    return Evaluation(
        model=model_name,
        protocol="impressions",
        refit=refit,
        requests=len(rows),
        users=num_users(requests.select(rows)),
        metrics=metrics,
        intervals={"auc": auc_interval(values, labels, groups)},
        slices={"judged by gauc": {"groups": judged}, "left out of gauc": {"groups": left_out}},
    )


def ranking_groups(requests: SequenceBatch) -> Tensor:
    """What each candidate is grouped by, [T] int64: its user, else (below 0) its request."""
    assert requests.candidates is not None
    request = requests.candidates.row_ids()
    if requests.user_ids is None:
        return -1 - request
    users = requests.user_ids[request]
    return torch.where(users > 0, users, -1 - request)
