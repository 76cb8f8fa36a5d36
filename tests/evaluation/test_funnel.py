"""Tests of the funnel of a staged model, against figures computed by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.evaluation.funnel import funnel


class Narrowing:
    """Model of three stages with 4, 2 and 1 items."""

    def stages(self, batch: SequenceBatch, k: int) -> Iterator[tuple[str, Recommendations]]:
        items = torch.tensor([[3, 1, 2, 4]]).expand(batch.num_requests, -1)
        for name, width in (("retrieval", 4), ("ranking", 2), ("list", 1)):
            yield name, Recommendations(items[:, :width], -torch.arange(width).float().expand(batch.num_requests, -1))


def test_recall_and_retention_of_each_stage() -> None:
    targets = Jagged.from_rows([[3], [1], [2], [9]])
    stages = funnel(Narrowing(), SequenceBatch(Jagged.from_rows([[1]] * 4), targets=targets), num_timed=2, batch_size=3)
    assert [stage.name for stage in stages] == ["retrieval", "ranking", "list"]
    assert [stage.candidates for stage in stages] == [4, 2, 1]
    assert [stage.recall for stage in stages] == [0.75, 0.5, 0.25]
    assert [stage.retention for stage in stages] == pytest.approx([0.75, 2 / 3, 0.5])
    second = 1 / torch.log2(torch.tensor(3.0)).item()
    third = 0.5
    assert stages[0].ndcg == pytest.approx((1 + second + third) / 4)
    assert all(stage.p50_ms >= 0 for stage in stages)
