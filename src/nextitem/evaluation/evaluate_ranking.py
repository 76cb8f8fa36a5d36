"""Evaluation of rankers: figures of the scores of logged impressions (`impressions` protocol)."""

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
from nextitem.evaluation.intervals import auc_interval, interval
from nextitem.evaluation.metrics import ranking


def evaluate_ranker(
    model: Ranker, requests: SequenceBatch, *, model_name: str = "", refit: bool = False, progress: bool = False
) -> Evaluation:
    """Return the figures of a ranker on logged impressions: each task is judged by the label of its name.

    A ranker with one task that is no label is judged by the first label. Names of figures of further tasks end with
    the task, such as auc_purchase.

    Args:
        model: the ranker.
        requests: requests with candidates and their labels.
        model_name: name of the model in the result.
        refit: whether the model was trained on validation events, too.
        progress: print a progress bar if stderr is a terminal.

    Returns:
        The figures of the first task, with those of further tasks added to its metrics and intervals.

    Raises:
        UserError: no task has a label.

    """
    scores = score_all(model, requests, progress=progress)
    labels = list(requests.candidate_labels)
    judged_tasks = [task for task in scores if task in labels]
    if not judged_tasks and len(scores) == 1 and labels:
        scores, judged_tasks = {labels[0]: next(iter(scores.values()))}, labels[:1]
    if not judged_tasks:
        raise UserError(
            f"impressions: the model scores {', '.join(scores)}, the labels are {', '.join(labels)}; "
            "train a model on one of these"
        )
    figures, *further_figures = [
        evaluate_ranking(scores[task], requests, label=task, model_name=model_name, refit=refit)
        for task in judged_tasks
    ]
    for task, further in zip(judged_tasks[1:], further_figures, strict=True):
        figures.metrics.update({f"{name}_{task}": value for name, value in further.metrics.items()})
        figures.intervals.update({f"{name}_{task}": value for name, value in further.intervals.items()})
        figures.calibration.update(further.calibration)
    return figures


@torch.inference_mode()
def score_all(
    model: Ranker, requests: SequenceBatch, *, batch_size: int = 1024, progress: bool = False
) -> dict[str, Jagged]:
    """Return a score for each candidate of the requests: task -> scores, with the candidates' offsets."""
    assert requests.candidates is not None, "requests must have candidates"
    batches: Iterable[SequenceBatch] = requests.split(batch_size)
    console = Console(stderr=True)
    if progress and console.is_terminal:
        num_batches = -(-requests.num_requests // batch_size)
        batches = track(batches, "scoring", total=num_batches, console=console, transient=True)
    parts: dict[str, list[Tensor]] = {}
    device = next(iter(model.buffers())).device if isinstance(model, nn.Module) else torch.device("cpu")
    for batch in batches:
        assert batch.candidates is not None
        for task, padded in model.score(batch.to(device)).items():
            parts.setdefault(task, []).append(Jagged.from_padded(padded.cpu(), batch.candidates.lengths).values)
    return {task: requests.candidates.with_values(torch.cat(values)) for task, values in parts.items()}


def quick_auc(model: Ranker, requests: SequenceBatch) -> float:
    """Return the figure by which the best epoch is selected: the first task's AUC; NaN if its labels are all equal."""
    scores, labels, _ = first_task(model, requests)
    return ranking.auc(scores, labels)


def first_task(model: Ranker, requests: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, labels (bool) and groups of the candidates whose label is known, [n] each, for the first task.

    A task that is no label is judged by the first label. Groups are those of `ranking_groups`.
    """
    task, scores = next(iter(score_all(model, requests).items()))
    labels = requests.candidate_labels
    values = labels[task if task in labels else next(iter(labels))].values
    has_label = ~values.isnan()
    return scores.values[has_label], values[has_label] > 0, ranking_groups(requests)[has_label]


def evaluate_ranking(
    scores: Jagged, requests: SequenceBatch, *, label: str, model_name: str = "", refit: bool = False
) -> Evaluation:
    """Return AUC, GAUC, log-loss, normalised entropy and calibration error of scores against labels.

    A label above 0 is positive. Candidates without a label (NaN) are skipped, and requests without any label are not
    counted. GAUC is over the groups that have both labels; a group is a user, or a request if its user is unknown. The
    intervals of AUC and GAUC are bootstraps over the same groups. A figure that is not defined (no group has both
    labels) is NaN, null in JSON.

    Args:
        scores: probabilities, with the candidates' offsets. If any score lies outside 0..1, log-loss, normalised
            entropy and calibration error are skipped.
        requests: requests with candidates and their labels.
        label: name of the label.
        model_name: name of the model in the result.
        refit: whether the model was trained on validation events, too.

    Returns:
        The figures. `slices` contains the numbers of groups: {"judged by gauc": {"groups": n}, "left out of gauc":
        {"groups": n}}. `values` contains what each group contributes to GAUC.

    Raises:
        ValueError: the candidates lack the label, or scores have other offsets or are not finite.
        UserError: no candidate has a value of the label.

    """
    if requests.candidates is None or label not in requests.candidate_labels:
        raise ValueError(f"no label {label!r}; the candidates have: {', '.join(requests.candidate_labels) or 'none'}")
    if not torch.equal(scores.offsets, requests.candidates.offsets):
        num_candidates = len(requests.candidates.values)
        raise ValueError(
            f"scores must share the candidates' offsets: {num_candidates} scores, got {len(scores.values)}"
        )
    if not bool(scores.values.isfinite().all()):
        raise ValueError("scores must be finite")
    has_label = ~requests.candidate_labels[label].values.isnan()
    if not bool(has_label.any()):
        raise UserError(f"no candidate has a known label {label!r}; fill it in, or evaluate other requests")
    values, labels = scores.values[has_label], requests.candidate_labels[label].values[has_label] > 0
    groups = ranking_groups(requests)[has_label]
    terms = ranking.gauc_terms(values, labels, groups)
    num_skipped = int(terms.isnan().sum())
    metrics = {"auc": ranking.auc(values, labels), "gauc": float(terms.nanmean())}
    calibration = {}
    if bool(((values >= 0) & (values <= 1)).all()):
        metrics["log_loss"] = ranking.log_loss(values, labels)
        metrics["normalised_entropy"] = ranking.normalised_entropy(values, labels)
        metrics["calibration_error"] = ranking.calibration_error(values, labels)
        bins = [part.tolist() for part in ranking.calibration_bins(values, labels)]
        names = ("predicted", "observed", "count")
        calibration[label] = [dict(zip(names, figures, strict=True)) for figures in zip(*bins, strict=True)]
    rows = torch.unique(requests.candidates.row_ids()[has_label])
    num_judged = int(torch.unique(groups).numel()) - num_skipped
    return Evaluation(
        model=model_name,
        protocol="impressions",
        refit=refit,
        requests=len(rows),
        users=num_users(requests.select(rows)),
        metrics=metrics,
        intervals={"auc": auc_interval(values, labels, groups), "gauc": interval(terms)},
        slices={"judged by gauc": {"groups": num_judged}, "left out of gauc": {"groups": num_skipped}},
        values={"gauc": terms},
        calibration=calibration,
    )


def ranking_groups(requests: SequenceBatch) -> Tensor:
    """Return the group of each candidate, [T] int64: its user, or (below 0) its request if the user is unknown."""
    assert requests.candidates is not None
    request = requests.candidates.row_ids()
    if requests.user_ids is None:
        return -1 - request
    users = requests.user_ids[request]
    return torch.where(users > 0, users, -1 - request)
