"""Loss of a model on held-out requests that is comparable between sizes of the model: nats a target, if it has one.

| model | loss |
| --- | --- |
| a generator of semantic IDs | -log of the probability of the target's codes, level by level |
| a vector model that learns by a softmax | -log of the softmax over all items at the target |
| a ranker of logged impressions whose scores are probabilities | log-loss of the first task |
| others | 1 - NDCG@10, or 1 - AUC: their scores are no probabilities |

The softmax is always over the whole catalogue, whatever number of negatives training samples. Codes of different
tokenizers are different events: their losses must not be compared.

Shapes: B requests, K targets of a request, M levels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Generator, Ranker
from nextitem.core.vector_model import VectorModel
from nextitem.evaluation.evaluate import quick_score
from nextitem.evaluation.evaluate_ranking import first_task
from nextitem.evaluation.metrics import ranking

SOFTMAX_OBJECTIVES = ("full-softmax", "sampled-softmax", "cross-entropy")
LOGITS_AT_ONCE = 2**24  # 64 MiB in float32
GENERATED_AT_ONCE = 256  # requests whose targets a generator reads together
NATS, LOG_LOSS = "nats a target", "log-loss"
NDCG_ERROR, AUC_ERROR = "1 - ndcg@10", "1 - auc"


def loss_name(model: Recommender, requests: SequenceBatch) -> str:
    """Return the name of the loss that `target_loss` returns for this model and such requests."""
    if requests.targets is None:
        return LOG_LOSS if isinstance(model, Ranker) else AUC_ERROR
    if isinstance(model, Generator):
        return NATS
    objective = getattr(model.config, "objective", None)
    has_softmax = getattr(objective, "kind", None) in SOFTMAX_OBJECTIVES
    return NATS if isinstance(model, VectorModel) and has_softmax else NDCG_ERROR


@torch.no_grad()
def target_loss(model: Recommender, requests: SequenceBatch) -> float:
    """Return the mean loss over all targets of the requests, or 1 minus a figure of merit (see the module).

    Args:
        model: a trained model.
        requests: requests with histories and targets, as `judged_requests` returns them, or with labelled candidates.

    Raises:
        ValueError: scores of a ranker are no probabilities, or the model cannot judge such requests.

    """
    was_training = model.training
    model.eval()
    name = loss_name(model, requests)
    try:
        if requests.targets is None:
            return _ranking_loss(model, requests, name)
        if name == NDCG_ERROR:
            return 1 - quick_score(model, requests, metric="ndcg@10")
        size = GENERATED_AT_ONCE
        if not isinstance(model, Generator):
            size = max(1, LOGITS_AT_ONCE // (model.num_items + 1))
        parts = [_losses(model, batch.to(model.popularity.device)) for batch in requests.split(size)]
        return float(torch.cat(parts).double().mean())
    finally:
        model.train(was_training)


def judged_requests(requests: SequenceBatch, trained: Tensor) -> SequenceBatch:
    """Return the requests with a history, without targets that no training event names.

    Such targets are predicted by none of the sizes. Requests that are left without targets are dropped.

    Args:
        requests: requests with targets.
        trained: whether each item has a training event, bool [N + 1].

    """
    targets = requests.targets
    assert targets is not None
    is_judged = trained[targets.values] & (requests.items.lengths > 0)[targets.row_ids()]
    counts = torch.bincount(targets.row_ids()[is_judged], minlength=targets.num_rows)
    judged_targets = Jagged.from_lengths(targets.values[is_judged], counts)
    return replace(requests, targets=judged_targets).select(counts.nonzero()[:, 0])


def _losses(model: Recommender, batch: SequenceBatch) -> Tensor:
    """Return the loss of each target of a batch, [targets]."""
    assert batch.targets is not None
    if isinstance(model, Generator):
        return _code_losses(model, batch)
    assert isinstance(model, VectorModel)
    items, biases, rows = model.item_vectors()[1:], model.item_biases(), batch.targets.row_ids()
    logits = model.user_vectors(batch) @ items.T
    if biases is not None:
        logits = logits + biases[1:]
    return logits.logsumexp(1)[rows] - logits[rows, batch.targets.values - 1]


def _code_losses(model: Generator, batch: SequenceBatch) -> Tensor:
    """Return -log of the probability of the codes of each target of a batch, [targets]."""
    assert batch.targets is not None
    assert isinstance(model, Recommender)
    table = model.identifiers
    assert table is not None
    items_BK = batch.targets.to_padded()
    codes_BKM = table.codes.to(items_BK.device).long()[items_BK].clamp(min=0)
    logits, state = model.step(model.start(batch), None)  # one beam a request
    state = state.reorder(torch.zeros_like(items_BK))  # one beam a target
    logits = logits.expand(-1, items_BK.shape[1], -1)
    total = torch.zeros(items_BK.shape, device=items_BK.device)
    for level in range(codes_BKM.shape[2]):
        if level:
            logits, state = model.step(state, codes_BKM[:, :, level - 1])
        log_probs = F.log_softmax(logits, dim=2)
        total -= log_probs.gather(2, codes_BKM[:, :, level : level + 1])[..., 0]
    return total[items_BK > 0]


def _ranking_loss(model: Recommender, requests: SequenceBatch, name: str) -> float:
    """Return the log-loss of a ranker's first task, or 1 - AUC."""
    if not isinstance(model, Ranker):
        raise ValueError(f"{type(model).__name__} scores no candidates, so it has no loss on impressions")
    scores, labels, _ = first_task(model, requests)
    if name == AUC_ERROR:
        return 1 - ranking.auc(scores, labels)
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError(f"scores of {type(model).__name__} are no probabilities, so they have no log-loss")
    return ranking.log_loss(scores, labels)
