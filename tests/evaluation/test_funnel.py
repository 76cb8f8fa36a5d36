"""The funnel, by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.evaluation.funnel import funnel


class Narrowing:
    """Three stages that each keep the first of 4, 2 and 1 items."""

    def stages(self, batch: SequenceBatch, k: int) -> Iterator[tuple[str, Recommendations]]:
        items = torch.tensor([[3, 1, 2, 4]]).expand(batch.num_requests, -1)
        for name, width in (("retrieval", 4), ("ranking", 2), ("list", 1)):
            yield name, Recommendations(items[:, :width], -torch.arange(width).float().expand(batch.num_requests, -1))


def test_what_each_stage_keeps_of_what_it_received() -> None:
    targets = Jagged.from_rows([[3], [1], [2], [9]])
    found = funnel(Narrowing(), SequenceBatch(Jagged.from_rows([[1]] * 4), targets=targets), timed=2, batch_size=3)
    assert [stage.name for stage in found] == ["retrieval", "ranking", "list"]
    assert [stage.candidates for stage in found] == [4, 2, 1]
    assert [stage.recall for stage in found] == [0.75, 0.5, 0.25]
    assert [stage.kept for stage in found] == pytest.approx([0.75, 2 / 3, 0.5])
    second = 1 / torch.log2(torch.tensor(3.0)).item()
    third = 0.5
    assert found[0].ndcg == pytest.approx((1 + second + third) / 4)
    assert all(stage.p50_ms >= 0 for stage in found)
