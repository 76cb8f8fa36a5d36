"""Alignment of a run: train its generator towards a reward, and write an ordinary run with figures before and after."""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import tomli_w
import torch

from nextitem.alignment.aligner import Aligner
from nextitem.alignment.config import METHODS, AlignmentConfig
from nextitem.alignment.method import live_groups
from nextitem.alignment.rewards.exposure import UnderExposure
from nextitem.alignment.rewards.reward import Reward, RewardSum, checked
from nextitem.alignment.rewards.rules import RuleReward
from nextitem.alignment.shop_judge import ShopJudge
from nextitem.core.config import apply_overrides, merge_tables, parse, read_toml, to_toml_values, write_toml
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Trainable
from nextitem.data.readers import SHOP
from nextitem.data.shop.list_truth import NO_EFFECTS
from nextitem.data.shop.shop import generate_shop
from nextitem.data.shop.truth import ShopTruth
from nextitem.decoding.trie import PrefixTrie
from nextitem.evaluation.generation import generates_codes
from nextitem.pipeline.aligning.figures import ListFigures, ListJudge, TrueValue, changes
from nextitem.pipeline.aligning.reward_models import (
    HELD_OUT_FOLDER,
    REWARD_FOLDER,
    REWARDS,
    RewardModel,
    RewardTraining,
    held_out_reward,
    later_auc,
    logged_length,
    opened_reward,
    trained_reward,
)
from nextitem.pipeline.bundle import load_recipe, save_model, save_recipe, write_json
from nextitem.pipeline.evaluate import evaluate_split, split_for
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.options import FitOptions, Log, silent
from nextitem.pipeline.recommend import Filters, allowed_items
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.tokenize import CONTENT_FILE, TOKENIZER_FILE
from nextitem.reporting.alignment_report import write_alignment_report
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import TrainingResult, fit

PROBE_REQUESTS = 64  # requests on which the reward is tried before training
TEST_REQUESTS = 2000  # test requests of the figures before and after
SETTINGS_FILE, FIGURES_FILE, CURVE_FILE, REPORT_FILE = (
    "alignment.toml",
    "alignment.json",
    "curve.json",
    "alignment.html",
)
SHORTFALL = 1000.0  # lost per unit of recall that an epoch loses beyond the limit: such an epoch is never the best


@dataclass(frozen=True, eq=False)
class Alignment:
    """What an alignment did.

    Attributes:
        run: the aligned run.
        before: figures of the original model on test requests.
        after: figures of the aligned model on the same requests.
        curve: the same figures on validation requests, before training (epoch 0) and after each epoch.
        best_epoch: the epoch whose weights the run has.
        notes: sentences for the user.

    """

    run: Run
    before: ListFigures
    after: ListFigures
    curve: list[dict[str, float]]
    best_epoch: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        pairs = [
            f"{name} {self.before.metrics[name]:.4f} -> {self.after.metrics[name]:.4f}"
            for name in ("recall@10", "modelled", "held_out", "true")
            if name in self.after.metrics
        ]
        return f"Alignment in {self.run.folder}, best epoch {self.best_epoch}: {', '.join(pairs)}"


@dataclass
class _Task:
    """What the steps of an alignment share."""

    source: Run
    folder: Path
    config: AlignmentConfig
    rewards: RewardTraining
    seed: int
    options: FitOptions
    split: Split
    notes: list[str] = field(default_factory=list)

    @property
    def dataset(self) -> Dataset:
        return self.source.dataset

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.options.log(f"note: {text}")


def align(
    run: Run | str | Path,
    *,
    out: str | Path,
    method: str = "ecpo",
    reward: str | Path = "clicks",
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    epochs: int | None = None,
    steps: int | None = None,
    lists: int | None = None,
    seed: int | None = None,
    truth: ShopTruth | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    log: Log | None = None,
) -> Alignment:
    """Train the generator of a run towards a reward, by the lists that it generates, and write an aligned run.

    The reward is a model that is trained on the impressions of the training data, or a run of a ranker. A second model
    with another seed shows whether the first one is deceived. The best epoch is the one with the highest reward by the
    second model on validation requests, among those that keep the accuracy (`alignment.max_recall_loss`).

    Args:
        run: a run of a generator (tiger, depth-decoder, ...), or its folder.
        out: the folder of the aligned run; refused if it is not empty.
        method: rsft, dpo, s-dpo, ipa, grpo, ecpo, gbpo or tpma.
        reward: clicks, purchases, session, or the folder of a run of a ranker or of an aligned run.
        settings: nested tables, {"alignment": {"sft_weight": 0.5}, "reward": {"epochs": 3}}, or dotted keys.
        overrides: settings as text, such as "alignment.method.beta=0.2", as the command line takes them.
        epochs: number of epochs; None: as the settings say.
        steps: number of steps altogether, instead of `epochs`; the last epoch may be longer than needed.
        lists: number of lists that are generated for each request.
        seed: seed of requests and samples; None: that of the run.
        truth: ground truth of a simulated shop; known by itself for the data "shop".
        device: where to compute: auto, cpu or cuda.
        resume: continue an interrupted alignment in `out`; it ends with the same weights.
        overwrite: replace a run that is in `out`.
        progress: show progress: a bar on a terminal, otherwise one line for each epoch.
        log: function that is called with each message and note; None: they are dropped.

    Returns:
        The aligned run, and figures before and after.

    Raises:
        UserError: the run generates no codes, the reward has other items, is constant or not finite, or there is a
            mistake in the settings.

    Examples:
        >>> outcome = ni.align("runs/depth-decoder", method="ecpo", reward="clicks", out="runs/aligned")
        >>> outcome.after.metrics["modelled"] - outcome.before.metrics["modelled"]

    """
    log = log or silent
    source = run if isinstance(run, Run) else load_run(run)
    config, rewards = _settings(method, settings or {}, overrides, {"epochs": epochs, "lists": lists}, steps=steps)
    _check(source, str(reward))
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    seed = source.recipe.seed if seed is None else seed
    facts = _facts(source, str(reward), config, rewards, seed)
    if resume:
        _check_same(folder, facts)
    write_toml(folder / SETTINGS_FILE, facts)
    options = FitOptions(folder, device=device, resume=resume, progress=progress, log=log)
    split = split_for(source.dataset, source.recipe.data.protocol, models=[source.name], seed=source.recipe.seed)
    task = _Task(source, folder, config, rewards, seed, options, split)
    return _align(task, str(reward), truth)


def _align(task: _Task, name: str, truth: ShopTruth | None) -> Alignment:
    """Train the reward models and the policy, and write the aligned run."""
    reward, held_out = _reward_models(task, name)
    length = logged_length(task.split.train)
    judge = ListJudge(
        task.split.test.sample(TEST_REQUESTS),
        length,
        reward.reward,
        None if held_out is None else held_out.reward,
        _true_values(task, reward, truth),
    )
    validation = replace(judge, requests=task.split.validation.sample(task.config.judged_requests))
    before_model = task.source.model
    trie = policy_trie(before_model)
    before = judge.figures(before_model, trie=trie)
    start_time = time.perf_counter()
    policy = load_run(task.source.folder).model
    total = _total_reward(task, reward.reward)
    items = task.config.items_per_list or (length if reward.judges_lists else 1)
    aligner = Aligner(policy, policy_trie(policy), total, task.config, items_per_list=items)
    num_skipped = aligner.examples(task.split.train).num_skipped_users
    if num_skipped:
        task.note(f"{num_skipped:,} users have one training event, and so no request to align with")
    probe(aligner, task.split.train, task.options.log)
    curve = _Curve(task, validation, policy, before_model)
    result = _fit(task, aligner, curve)
    seconds = time.perf_counter() - start_time
    policy.eval()
    after = judge.figures(policy, trie=policy_trie(policy))
    aligned = _write(task, policy, result, seconds)
    outcome = Alignment(aligned, before, after, curve.rows, result.best_epoch, tuple(task.notes))
    _write_figures(task, outcome, reward, held_out, result)
    return outcome


def policy_trie(model: Recommender) -> PrefixTrie:
    """Return the code sequences that a generator generates."""
    return cast(PrefixTrie, cast(Any, model).trie)


def probe(aligner: Aligner, train: Dataset, log: Log) -> None:
    """Raise UserError if the reward does not tell the lists of any of some requests apart, or none has a legal list."""
    batch = next(iter(aligner.examples(train).batches(PROBE_REQUESTS, epoch=0, seed=0)))
    aligner.policy.eval()
    with torch.no_grad():
        rollouts = aligner.generate(batch.requests)
        reward = aligner._fixed[1]
        rewards = checked(reward, batch.requests, rollouts.item_ids)
    num_legal = int(rollouts.is_legal.any(1).sum())
    if not num_legal:
        raise UserError("no request has a list that its constraints allow, so there is nothing to align")
    num_live = int(live_groups(rewards, rollouts.is_legal).sum())
    if not num_live:
        raise UserError(
            f"the reward {reward.name} is the same for all {rollouts.num_lists} lists of each of {num_legal} requests, "
            "so nothing can be learned from it; use another reward, or more lists (--lists)"
        )
    log(f"the reward tells the lists of {num_live} of {batch.requests.num_requests} requests apart")


class _Curve:
    """Figures on validation requests after each epoch, in a file, so that a resumed alignment continues them."""

    def __init__(self, task: _Task, judge: ListJudge, policy: Recommender, before: Recommender) -> None:
        self.task, self.judge, self.policy = task, judge, policy
        self.file = task.folder / CURVE_FILE
        self.rows: list[dict[str, float]] = []
        if task.options.resume and self.file.is_file():
            self.rows = json.loads(self.file.read_text(encoding="utf-8"))["epochs"]
        if not self.rows:
            self._add(0, judge.figures(before))

    def validate(self) -> float:
        """Judge the current weights, and return the value by which the best epoch is selected."""
        figures = self.judge.figures(self.policy)
        self._add(int(self.rows[-1]["epoch"]) + 1, figures)
        shortfall = (1 - self.task.config.max_recall_loss) * self.rows[0]["recall@10"] - figures.metrics["recall@10"]
        return figures.metrics.get("held_out", figures.metrics["modelled"]) - SHORTFALL * max(0.0, shortfall)

    def truncate(self, epochs: int) -> None:
        """Forget what was judged after the checkpoint from which training continues."""
        self.rows = self.rows[: epochs + 1]

    def _add(self, epoch: int, figures: ListFigures) -> None:
        self.rows.append({"epoch": float(epoch), **figures.metrics})
        write_json(self.file, {"epochs": self.rows})


def _fit(task: _Task, aligner: Aligner, curve: _Curve) -> TrainingResult:
    """Train the aligner as any model is trained."""
    config = task.config
    training = TrainingConfig(
        max_epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        gradient_clip=config.gradient_clip,
        warmup_steps=10,
        patience=None,
    )
    if task.options.resume:
        curve.truncate(_finished_epochs(task.folder))
    result = fit(
        aligner,
        aligner.examples(task.split.train),
        training,
        seed=task.seed,
        out=task.folder,
        validate=curve.validate,
        resume=task.options.resume,
        device=task.options.device,
        progress=task.options.progress,
        label=f"{task.source.name} {config.method.kind}",
    )
    if result.stop_reason == "interrupted":
        raise KeyboardInterrupt
    if curve.rows[result.best_epoch]["recall@10"] < (1 - config.max_recall_loss) * curve.rows[0]["recall@10"]:
        task.note(
            f"every epoch loses more than {config.max_recall_loss:.0%} of recall@10 on validation requests; lower "
            "alignment.learning_rate or raise alignment.sft_weight"
        )
    last = result.epoch_log[-1]
    if last["dead_groups"] > 0.5:
        task.note(f"the reward does not tell the lists of {last['dead_groups']:.0%} of the requests apart: skipped")
    return result


def _finished_epochs(folder: Path) -> int:
    """Return the number of complete epochs of the checkpoint in a folder."""
    file = folder / "checkpoints" / "last.ckpt"
    if not file.is_file():
        return 0
    callbacks = torch.load(file, map_location="cpu", weights_only=True)["callbacks"]
    return next(int(state["epoch"]) for state in callbacks.values() if "epoch" in state)


def _reward_models(task: _Task, name: str) -> tuple[RewardModel, RewardModel | None]:
    """Train or open the reward that is optimised, and train the one that only judges."""
    options = replace(task.options, folder=task.folder / REWARD_FOLDER)
    if name in REWARDS:
        reward = trained_reward(name, task.source, task.split, task.rewards, options, seed=task.seed)
        recipe = load_recipe(reward.folder)
    else:
        reward, recipe = opened_reward(name, task.source, task.split, task.rewards, options)
    auc = later_auc(reward, task.dataset, task.split)
    if auc is not None:
        task.options.log(f"reward {name}: AUC {auc:.4f} on later impressions")
        reward = replace(reward, auc=auc)
    held_out = None
    if task.rewards.held_out:
        options = replace(task.options, folder=task.folder / HELD_OUT_FOLDER)
        held_out = held_out_reward(reward, recipe, task.split, options, name=f"{name}, another seed")
    return reward, held_out


def _total_reward(task: _Task, main: Reward) -> Reward:
    """Return the reward that is optimised: the main one, plus under-exposure and rules by their weights."""
    config, parts = task.config, [(main, 1.0)]
    if config.under_exposure:
        counts = torch.from_numpy(task.split.train.interactions.item_counts()).float()
        parts.append((UnderExposure(counts, share=config.under_exposure_share), config.under_exposure))
    for condition, weight in config.rules.items():
        try:
            allowed = allowed_items(task.source.model.catalog, Filters(only=(condition,)))
        except UserError as error:
            raise UserError(str(error).replace("--only", "alignment.rules")) from None
        assert allowed is not None
        parts.append((RuleReward(allowed, condition=condition), weight))
    return main if len(parts) == 1 else RewardSum(parts)


def _true_values(task: _Task, reward: RewardModel, truth: ShopTruth | None) -> dict[str, TrueValue]:
    """Return the functions of the true value of lists, with and without effects of items on each other; or none."""
    if truth is None and task.source.recipe.data.path == SHOP:
        truth = generate_shop().truth
    if truth is None or task.split.test.request_times is None:
        return {}
    weights = {label: weight for label, weight in reward.weights.items() if label in ("click", "purchase")}
    judges = {"true": None, "true_alone": NO_EFFECTS}
    return {
        name: ShopJudge(truth, task.dataset, weights or {"click": 1.0}, effects=effects).value
        for name, effects in judges.items()
    }


def _settings(
    method: str,
    settings: Mapping[str, Any],
    overrides: Sequence[str],
    flags: Mapping[str, int | None],
    *,
    steps: int | None,
) -> tuple[AlignmentConfig, RewardTraining]:
    """Return the settings of alignment and of the reward models."""
    if method not in METHODS:
        raise UserError(f"--method {method!r}: choose one of {', '.join(METHODS)}")
    tables: dict[str, Any] = {"alignment": {"method": {"kind": method}}, "reward": {}}
    for key, value in settings.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        tables = merge_tables(tables, value)
    tables = apply_overrides(tables, overrides)
    unknown = set(tables) - {"alignment", "reward"}
    if unknown:
        raise UserError(f"settings of {', '.join(sorted(unknown))}: alignment has the tables alignment and reward")
    given_flags = {name: value for name, value in flags.items() if value is not None}
    config = parse(AlignmentConfig, {**tables["alignment"], **given_flags}, where="the settings of alignment")
    if steps is not None:
        if flags.get("epochs") is not None:
            raise UserError("--epochs and --steps exclude each other")
        per_epoch = min(config.steps_per_epoch, steps)
        config = config.model_copy(update={"epochs": -(-steps // per_epoch), "steps_per_epoch": per_epoch})
    return config, parse(RewardTraining, tables["reward"], where="the settings of the reward")


def _check(run: Run, reward: str) -> None:
    """Raise UserError if a run cannot be aligned, or the reward is neither a name nor a folder."""
    if reward not in REWARDS and not Path(reward).is_dir():
        raise UserError(f"--reward {reward}: write one of {', '.join(REWARDS)}, or the folder of a run of a ranker")
    if not generates_codes(run.model) or not isinstance(run.model, Trainable):
        raise UserError(
            f"{run.folder}: {run.name} does not generate items code by code with probabilities, so it cannot be "
            "aligned; use a run of tiger, depth-decoder, ..."
        )


def _facts(run: Run, reward: str, config: AlignmentConfig, rewards: RewardTraining, seed: int) -> dict[str, Any]:
    """Return what determines an alignment, as tables."""
    return {
        "seed": seed,
        "source": {"run": str(run.folder), "weights": run.model.weights_fingerprint()},
        "alignment": config.as_table(),
        "reward": {"name": reward, **rewards.as_table()},
    }


def _check_same(folder: Path, facts: Mapping[str, Any]) -> None:
    """Raise UserError if an alignment in `folder` was begun with other settings."""
    file = folder / SETTINGS_FILE
    if file.is_file() and read_toml(file) != tomllib.loads(tomli_w.dumps(to_toml_values(facts))):
        raise UserError(f"{folder} was begun with other settings; resume with the same, or use --overwrite")


def _write(task: _Task, policy: Recommender, result: TrainingResult, seconds: float) -> Run:
    """Write the aligned run: the recipe and the catalogue of the original, the new weights, and its evaluation."""
    save_recipe(task.folder, task.source.recipe)
    save_model(task.folder, policy)
    for name in (TOKENIZER_FILE, CONTENT_FILE):
        if (task.source.folder / name).is_file():
            shutil.copy2(task.source.folder / name, task.folder / name)
    aligned = Run(task.folder, task.source.recipe, policy, _dataset=task.dataset)
    aligned.evaluation = evaluate_split(aligned, task.split, progress=task.options.progress)
    aligned.epoch_log = result.epoch_log
    aligned.metrics = {
        **aligned.evaluation.to_json(),
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "train_seconds": round(float(task.source.metrics.get("train_seconds", 0.0)) + seconds, 2),
        "stopped": result.stop_reason,
        "best_epoch": result.best_epoch,
    }
    write_json(task.folder / "metrics.json", aligned.metrics)
    return aligned


def _write_figures(
    task: _Task, outcome: Alignment, reward: RewardModel, held_out: RewardModel | None, result: TrainingResult
) -> None:
    """Write alignment.json, and alignment.html with the curves."""
    differences = changes(outcome.before, outcome.after)
    facts = {
        "method": task.config.method.kind,
        "reward": reward.reward.name,
        "reward_auc": reward.auc,
        "has_held_out": held_out is not None,
        "source": str(task.source.folder),
        "seconds": round(result.seconds, 1),
        "best_epoch": outcome.best_epoch,
        "before": outcome.before.to_json(),
        "after": outcome.after.to_json(),
        "changes": {name: [part.mean, part.low, part.high] for name, part in differences.items()},
        "curve": outcome.curve,
        "epochs": result.epoch_log,
        "notes": list(outcome.notes),
    }
    write_json(task.folder / FIGURES_FILE, facts)
    write_alignment_report(task.folder / REPORT_FILE, facts)
