"""Training of a cascade, stage by stage: channels on the past, rankers on what those find for recent events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm, Examples, Ranker, Trainable
from nextitem.data.examples.labelled_candidates import TARGET, LabelledRequests
from nextitem.data.examples.recent_events import recent_events
from nextitem.evaluation.evaluate import quick_score
from nextitem.pipeline.bundle import load_weights, save_weights
from nextitem.pipeline.recipe import Recipe, component
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

BLOCK = 256  # requests whose candidates are found at a time
HELD = 0.1  # share of recent events, the last ones, that rankers are validated on
JUDGED = 500  # requests at most that a stage is validated on
TEACHER = "teacher"


@dataclass(frozen=True)
class Stages:
    """What fitting a stage needs beside the stage."""

    recipe: Recipe
    folder: Path
    device: str
    resume: bool
    progress: bool
    say: Callable[[str], None]
    chosen: Path | None = None  # of a refit: the stages of the run whose epochs were chosen on validation

    def fit(
        self,
        name: str,
        model: Recommender,
        train: Dataset,
        *,
        examples: Callable[[], Examples] | None = None,
        validate: Callable[[], float] | None = None,
        epochs: int | None = None,
    ) -> int | None:
        """Fits one stage and keeps its weights; with resume, a stage that is finished is read back.

        Returns its best epoch; None where it is of closed form.
        """
        place = self.folder / "stages" / name
        done = place / "weights.safetensors"
        if self.resume and done.is_file():
            load_weights(done, model)
            return _best_epoch(place)
        self.say(f"{name} ...")
        model.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())
        torch.manual_seed(self.recipe.seed)
        best = None
        if examples is not None and hasattr(model, "fit_to"):
            cast(Any, model).fit_to(examples())  # trees, which learn from all examples at once
        elif isinstance(model, ClosedForm) and examples is None:
            model.fit(train)
        else:
            if not isinstance(model, Trainable):
                raise UserError(f"{name}: {type(model).__name__} cannot learn from the candidates of a cascade")
            result = fit(
                model,
                model.examples(train) if examples is None else examples(),
                self._training(name.split("/")[0]),
                seed=self.recipe.seed,
                out=place,
                validate=validate,
                stop_after=epochs if validate is not None or self.chosen is None else _best_epoch(self.chosen / name),
                resume=self.resume,
                device=self.device,
                progress=self.progress,
                label=name,
            )
            if result.stopped == "interrupted":
                raise KeyboardInterrupt
            best = result.best_epoch
        place.mkdir(parents=True, exist_ok=True)
        model.eval()
        save_weights(done, model)
        (place / "best_epoch").write_text(str(best or 0), encoding="utf-8")
        return best

    def _training(self, name: str) -> TrainingConfig:
        """The stage's own settings; a time budget of the whole run is shared out evenly."""
        own = self.recipe.stages.get(name, TrainingConfig())
        minutes = self.recipe.training.max_minutes
        return own if minutes is None else own.model_copy(update={"max_minutes": minutes / max(1, self._fits())})

    def _fits(self) -> int:
        """How often something learns by gradient: rankers once, channels twice."""
        config = component("model", self.recipe.model)[1]
        assert isinstance(config, CascadeConfig)
        by_gradient = [not hasattr(component("model", channel.model)[0], "fit") for channel in config.channels.values()]
        return 2 * sum(by_gradient) + sum(stage is not None for stage in (config.pre_ranking, config.ranking))


def fit_cascade(model: Cascade, learnt: Dataset, split: Split | None, stages: Stages) -> None:
    """Fits every stage, in order.

    1. Channels learn from the past: training without its recent events.
    2. What they bring for the recent events says what a place in each is worth (ChannelRates), and is what the ranker
       learns to order; the pre-ranker learns the same, and the ranker's scores where it has a teacher.
    3. Channels learn anew, from all of training.
    """
    chosen = model.settings
    recent = recent_events(
        learnt,
        share=chosen.recent_share,
        most=chosen.recent_events,
        seed=stages.recipe.seed,
        returns=chosen.returns,
    )
    if not recent.requests.num_requests:
        raise UserError(f"{learnt.name}: no recent event has an earlier one, so rankers have nothing to learn from")
    validate = None
    if split is not None and split.validation.targets is not None:
        validate = split.validation
    epochs = {
        name: _fit_channel(model, name, recent.past, validate, stages, part="/past") for name in model.channel_names
    }
    model.set_popularity(torch.from_numpy(recent.past.interactions.item_counts()).float())
    found = _found(model, recent.requests)
    log = learnt.interactions if learnt.interactions.timestamps is not None else recent.past.interactions
    if model.ranker is not None:
        _fit_ranker("ranking", model, model.ranker, found, learnt, log, stages)
    if model.pre_ranker is not None:
        assert chosen.pre_ranking is not None
        if chosen.pre_ranking.teacher:
            if not isinstance(model.ranker, Ranker):
                raise UserError("[model.pre_ranking] teacher = true needs a [model.ranking] that scores candidates")
            found = [_taught(requests, model.ranker) for requests in found]
        _fit_ranker("pre-ranking", model, model.pre_ranker, found, learnt, log, stages)
    for name in model.channel_names:
        _fit_channel(model, name, learnt, validate, stages, epochs=epochs[name])
    model.set_popularity(torch.from_numpy(learnt.interactions.item_counts()).float())


def _fit_channel(
    model: Cascade,
    name: str,
    train: Dataset,
    validation: SequenceBatch | None,
    stages: Stages,
    *,
    part: str = "",
    epochs: int | None = None,
) -> int | None:
    """One channel; the second time, from all of training, for as many epochs as were best the first time."""
    torch.manual_seed(stages.recipe.seed)
    channel = model.renew(name)
    quick = None
    if part and validation is not None:
        quota = model.rates.quotas[model.channel_names.index(name)]
        quick = partial(quick_score, channel, _sample(validation), metric=f"recall@{quota}")
    return stages.fit(name + part, channel, train, validate=quick, epochs=epochs)


def _fit_ranker(
    name: str,
    model: Cascade,
    ranker: Recommender,
    found: list[SequenceBatch],
    learnt: Dataset,
    log: Any,
    stages: Stages,
) -> None:
    """A ranker, from the candidates of recent events; the last of these validate."""
    train, held = found
    examples_of = getattr(ranker, "examples_of", None)

    def examples() -> Examples:
        if getattr(getattr(ranker, "ranking", None), "learn_from", "auto") == "impressions":
            return cast(Trainable, ranker).examples(learnt)
        return LabelledRequests(train) if examples_of is None else cast(Examples, examples_of(train, log))

    stages.fit(name, ranker, learnt, examples=examples, validate=partial(quick_score, ranker, held))


def _found(model: Cascade, requests: SequenceBatch) -> list[SequenceBatch]:
    """Requests to learn from and to validate on, with the candidates that the channels bring for them, labelled.

    What they bring for all of them says what a place in each channel is worth.

    To learn from: those whose target was found, with `negatives` of the other candidates, drawn; the target, not where
    it stands, makes the label. To validate on: the last tenth of the requests, with all candidates.
    """
    assert requests.targets is not None
    lists = [[answer.item_ids for answer in model.retrieve(part)] for part in requests.split(BLOCK)]
    model.rates.measure([torch.cat(channel) for channel in zip(*lists, strict=True)], requests.targets)
    cut = int(requests.num_requests * (1 - HELD))
    learn, held = (requests.select(rows) for rows in (torch.arange(cut), torch.arange(cut, requests.num_requests)))
    held = _sample(held)
    draw = torch.Generator().manual_seed(0)
    parts = [[_labelled(model, part, draw) for part in learn.split(BLOCK)]]
    parts.append([_labelled(model, part, None) for part in held.split(BLOCK)])
    return [_together([part for part in each if part.num_requests]) for each in parts]


def _labelled(model: Cascade, requests: SequenceBatch, draw: torch.Generator | None) -> SequenceBatch:
    """The requests with candidates and labels; with `draw`, those whose target was found, and a sample of the rest."""
    found = model.candidates(requests, 1)
    assert requests.targets is not None
    items, ranks = found.items, found.ranks
    label = items == requests.targets.values[:, None]
    if draw is not None:
        rows = label.any(1).nonzero()[:, 0]
        requests, items, ranks, label = requests.select(rows), items[rows], ranks[rows], label[rows]
        keys = torch.rand(items.shape, generator=draw).masked_fill(items == 0, 2).masked_fill(label, -1)
        kept = keys.argsort(1)[:, : model.settings.negatives + 1].sort(1).values
        items, label = items.gather(1, kept), label.gather(1, kept)
        ranks = ranks.gather(1, kept[..., None].expand(-1, -1, ranks.shape[2]))
        order = (items == 0).to(torch.uint8).argsort(dim=1, stable=True)
        items, label = items.gather(1, order), label.gather(1, order)
        ranks = ranks.gather(1, order[..., None].expand(ranks.shape))
    asked = model.with_candidates(requests, items, ranks)
    assert asked.candidates is not None
    return replace(asked, candidate_labels={TARGET: asked.candidates.with_values(label[items > 0].float())})


def _taught(requests: SequenceBatch, ranker: Ranker) -> SequenceBatch:
    """The requests with the ranker's scores as a further label."""
    parts = []
    with torch.inference_mode():
        for part in requests.split(BLOCK):
            assert part.candidates is not None
            scores = next(iter(ranker.score(part).values()))
            parts.append(Jagged.from_padded(scores, part.candidates.lengths).values.clone())
    assert requests.candidates is not None
    taught = requests.candidates.with_values(torch.cat(parts))
    return replace(requests, candidate_labels={**requests.candidate_labels, TEACHER: taught})


def _sample(requests: SequenceBatch) -> SequenceBatch:
    return requests.select(torch.linspace(0, requests.num_requests - 1, min(JUDGED, requests.num_requests)).long())


def _together(parts: list[SequenceBatch]) -> SequenceBatch:
    if not parts:
        raise UserError("the channels found no target of any recent event: rankers have nothing to learn from")
    return SequenceBatch.concat(parts)


def _best_epoch(place: Path) -> int | None:
    file = place / "best_epoch"
    return (int(file.read_text(encoding="utf-8")) or None) if file.is_file() else None
