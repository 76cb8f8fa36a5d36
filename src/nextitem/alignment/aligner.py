"""Aligner: trains a generator by the lists that it generates, as any Trainable is trained.

A step generates a group of lists for each request, judges them, and adds the method's loss to the policy's own. The
policy is in evaluation mode while it generates and while the lists are scored: without dropout, lists that it has just
generated have exactly the ratio 1. Its own loss has dropout.

Shapes: B requests, G lists of a request, m items of a list, M codes of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nextitem.alignment.config import AlignmentConfig
from nextitem.alignment.examples import AlignmentBatch, AlignmentExamples
from nextitem.alignment.frozen_copy import FrozenCopy
from nextitem.alignment.method import ScoredLists, live_groups, of_lists
from nextitem.alignment.rewards.reward import Reward, checked
from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Generator, LossTerms, Trainable
from nextitem.core.rollouts import Rollouts
from nextitem.decoding.list_log_probs import ListScores, list_log_probs, score_lists
from nextitem.decoding.rollouts import sample_freely, search_lists
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.trie import PrefixTrie


class Aligner(nn.Module):
    """A policy that learns from its own lists.

    Attributes:
        policy: the generator that is trained.
        reference: the policy as it was at the start, or after the last epoch, as the method has it.
        behaviour: the policy that generates the lists; None: the current one.
        steps: number of steps so far.

    Args:
        policy: a Generator that is Trainable.
        trie: the code sequences of the items that it generates.
        reward: judge of the lists.
        config: settings.
        items_per_list: number of items of a list (m).

    """

    steps: Tensor

    def __init__(
        self, policy: Recommender, trie: PrefixTrie, reward: Reward, config: AlignmentConfig, *, items_per_list: int
    ) -> None:
        super().__init__()
        self.policy, self.config, self.items_per_list = policy, config, items_per_list
        self.reference = FrozenCopy(policy)
        self.behaviour = FrozenCopy(policy) if config.refresh_every > 1 else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._fixed = (trie, reward)  # hidden: neither trained nor saved here

    def examples(self, train: Dataset) -> AlignmentExamples:
        """Return requests of the training events, beside the policy's own examples."""
        config = self.config
        supervised = cast(Trainable[Any], self.policy).examples(train) if config.sft_weight else None
        return AlignmentExamples(
            train,
            steps_per_epoch=config.steps_per_epoch,
            history_length=config.history_length,
            supervised=supervised,
            supervised_batch_size=config.sft_batch_size,
        )

    def training_loss(self, batch: AlignmentBatch[Any]) -> LossTerms:
        """Return the loss of the method on lists that are generated now, plus the policy's own loss."""
        self.policy.eval()
        terms = self._preference_loss(batch.requests)
        self.policy.train()
        total, named = terms.total, dict(terms.named)
        if batch.supervised is not None:
            own = cast(Trainable[Any], self.policy).training_loss(batch.supervised)
            total = total + self.config.sft_weight * own.total
            named["sft"] = own.total.detach()
        self.steps += 1
        return LossTerms(total, named)

    def after_epoch(self, epoch: int) -> Sequence[nn.Parameter]:
        """Make the current policy the reference, if the method says so; no parameter is reset."""
        if self.config.method.refreshes_reference:
            self.reference.copy_from(self.policy)
        return ()

    def generate(self, requests: SequenceBatch) -> Rollouts:
        """Return the lists [B, G] that the behaviour policy generates; on-policy, their log-probabilities are 0."""
        config, trie = self.config, self._fixed[0]
        sampling = None
        if config.rollouts == "sampling":
            sampling = Sampling(_random(), temperatures=(config.temperature,))
        return search_lists(
            cast(Generator, self._behaviour()),
            requests,
            trie,
            num_lists=config.lists,
            items_per_list=self.items_per_list,
            sampling=sampling,
            version=f"step {int(self.steps)}",
            is_scored=self.behaviour is not None,
        )

    def _behaviour(self) -> Recommender:
        if self.behaviour is None:
            return self.policy
        if int(self.steps) % self.config.refresh_every == 0:
            self.behaviour.copy_from(self.policy)
        return self.behaviour.model

    def _preference_loss(self, requests: SequenceBatch) -> LossTerms:
        """Return the method's loss on newly generated lists, and the figures that show trouble early."""
        trie, reward = self._fixed
        rollouts = self.generate(requests)
        rewards = checked(reward.to(rollouts.item_ids.device), requests, rollouts.item_ids)
        is_live = live_groups(rewards, rollouts.is_legal)
        named = {
            "reward": rewards.masked_select(rollouts.is_legal).double().mean().nan_to_num(),
            "dead_groups": (~is_live).double().mean(),
        }
        method = self.config.method
        picks = method.pick(rewards, rollouts.is_legal)
        if picks is not None:
            rollouts, rewards = rollouts.select(picks), rewards.gather(1, picks)
        scores = score_lists(cast(Generator, self.policy), requests, rollouts.codes, trie)
        if self.behaviour is None:
            rollouts = replace(rollouts, log_probs=scores.log_probs.detach().float())
        with torch.no_grad():
            reference = list_log_probs(cast(Generator, self.reference.model), requests, rollouts.codes, trie)
        lists = ScoredLists(rollouts, rewards, is_live, scores.log_probs, reference, self._target_codes(requests))
        terms = method.loss(lists)
        total = method.weight * terms.total
        named |= {**terms.named, **_figures(lists, scores)}
        if self.config.format_weight:
            format_loss, share = self._format_loss(requests)
            total = total + self.config.format_weight * format_loss
            named["free_legal_share"] = share
        return LossTerms(total, named)

    def _format_loss(self, requests: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return the loss of unconstrained samples, which have the advantage 1 if they are legal, and their share.

        Random samples, not the likeliest ones: these are legal already. Illegal ones are dropped (OneRec, section 4.2).
        """
        policy, trie = cast(Generator, self.policy), self._fixed[0]
        samples = sample_freely(policy, requests, trie, num_lists=self.config.format_samples, random=_random())
        log_probs = list_log_probs(policy, requests, samples.codes, trie, constrained=False)
        ratio = (of_lists(log_probs) - of_lists(log_probs).detach()).exp()
        is_legal = samples.is_legal
        ratio = ratio.masked_fill(~is_legal, 0)  # before the sum: the log-probability of an illegal code may be -inf
        return -ratio.sum() / is_legal.sum().clamp(min=1), is_legal.double().mean()

    def _target_codes(self, requests: SequenceBatch) -> Tensor | None:
        """Return the codes of the items that followed, [B, T, M]; -1 for none."""
        if requests.targets is None:
            return None
        targets = requests.targets.to_padded()
        codes = cast(Any, self.policy).codes[targets].long()
        return codes.masked_fill((targets <= 0)[..., None], -1)  # type: ignore[no-any-return]


def _random() -> torch.Generator:
    """Return a source of samples seeded by torch's own, which each training step seeds from its place in the run."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


@torch.no_grad()
def _figures(lists: ScoredLists, scores: ListScores) -> dict[str, Tensor]:
    """Return figures of lists that show trouble early.

    `log_prob`: mean log-probability of a list. `chosen_log_prob`: that of the list of each group with the highest
    reward. `kl`: estimate of the divergence from the reference, per code. `legality`: probability of these lists' first
    items without the constraint, over that with it. It estimates how often the policy writes the codes of an allowed
    item without any constraint; too high if the lists are only the likeliest. `entropy_1`, ...: mean of each level.
    """
    rollouts, is_legal = lists.rollouts, lists.rollouts.is_legal
    totals = of_lists(lists.log_probs)
    best = lists.rewards.masked_fill(~is_legal, -torch.inf).argmax(1, keepdim=True)
    is_item = rollouts.is_item & is_legal[..., None]
    num_items = is_item.sum().clamp(min=1)
    gap = lists.reference_log_probs - lists.log_probs
    divergence = ((gap.exp() - gap - 1).mean(3) * is_item).sum() / num_items
    legal, free = (part[:, :, 0].sum(2).exp() * is_legal for part in (scores.log_probs, scores.free_log_probs))
    legality = free.sum(1) / legal.sum(1).clamp(min=1e-30)
    has_list = is_legal.any(1)
    figures = {
        "log_prob": (totals * is_legal).sum() / is_legal.sum().clamp(min=1),
        "chosen_log_prob": (totals.gather(1, best)[:, 0] * has_list).sum() / has_list.sum().clamp(min=1),
        "kl": divergence,
        "legality": (legality * has_list).sum() / has_list.sum().clamp(min=1),
    }
    by_level = (scores.entropies * is_item[..., None]).sum((0, 1, 2)) / num_items
    return figures | {f"entropy_{level}": value for level, value in enumerate(by_level, start=1)}
