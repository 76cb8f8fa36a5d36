"""Wide & Deep: the sum of both parts, and an optimizer for each; FTRL leaves exact zeros in the wide part."""

from __future__ import annotations

from pathlib import Path

import torch
from support.rankers import BuildRanker

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Split
from nextitem.models.rankers.wide_and_deep import WideAndDeep, WideAndDeepConfig
from nextitem.training.config import OptimizerConfig, TrainingConfig
from nextitem.training.fit import fit


def test_a_logit_is_the_sum_of_both_parts(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(WideAndDeep, width=3, hidden=(5,))
    codes = model.fields(requests)
    first, second = (model.deep.get_submodule(path) for path in ("shared.layers.0", "towers.0.0"))
    deep = second(torch.relu(first(model.vectors(codes).flatten(1))))
    torch.testing.assert_close(model.logits(requests, codes), model.wide(codes).sum(1) + deep)


def test_ftrl_on_the_wide_part_leaves_exact_zeros_and_resumes_exactly(impressions: Split, tmp_path: Path) -> None:
    wide = OptimizerConfig(optimizer="ftrl", learning_rate=0.1, l1=0.02)
    settings = TrainingConfig(
        optimizer="adagrad", learning_rate=0.05, batch_size=64, max_epochs=2, groups={"wide": wide}
    )

    def train(**arguments: object) -> WideAndDeep:
        torch.manual_seed(0)
        model = WideAndDeep(WideAndDeepConfig(width=4, hidden=(8,)), impressions.train.catalog)
        fit(model, model.examples(impressions.train), settings, progress=False, **arguments)  # type: ignore[arg-type]
        return model

    uninterrupted = train()
    weights = uninterrupted.wide.table.weight
    zero_share = float((weights == 0).float().mean())
    codes = uninterrupted.fields(impressions.test).code_occurrences()[0].unique()
    assert 0.5 < zero_share < 1
    assert 0 < int((weights[codes] != 0).sum()) < len(codes)
    assert not bool((uninterrupted.vectors.table.weight[codes] == 0).all(1).all())
    train(out=tmp_path, stop_after=1)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    next(iter(checkpoint["callbacks"].values()))["stopped"] = "interrupted"
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    resumed = train(out=tmp_path, resume=True)
    for first, second in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)
