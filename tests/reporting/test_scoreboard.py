"""Tests of the scoreboard: its public format, and its marks of the best and of noise."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import torch
from rich.console import Console

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.evaluation.evaluate import Evaluation, num_users
from nextitem.reporting.report import _figures
from nextitem.reporting.scoreboard import (
    Column,
    ReportRow,
    _cells,
    best_marks,
    column_marks,
    noise_marks,
    part_line,
    print_evaluation,
    print_scoreboard,
    scoreboard_json,
)


def row(name: str, recalls: torch.Tensor) -> ReportRow:
    """Return a row with these values of recall@10, one for each request."""
    mean = float(recalls.mean())
    evaluation = Evaluation(
        model=name,
        protocol="time",
        refit=False,
        requests=len(recalls),
        users=len(recalls),
        metrics={"recall@10": mean, "ndcg@10": mean / 2, "coverage@10": 0.5},
        intervals={"recall@10": (mean - 0.1, mean + 0.1)},
        slices={"cold": {"requests": 3, "recall@10": 0.125}},
        values={"recall@10": recalls, "ndcg@10": recalls / 2},
    )
    return ReportRow(evaluation, parameters=1234, train_seconds=5.5, p50_ms=1.25, p99_ms=2.5)


def rows() -> list[ReportRow]:
    """Return rows of a weak model, a strong one, and one that is within noise of the strong one."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.rand(400, generator=generator) < 0.3).double()
    twin = base.clone()
    twin[base.nonzero()[:2, 0]] = 0
    twin[(base == 0).nonzero()[:1, 0]] = 1
    return [row("weak", base * 0), row("strong", base), row("twin", twin)]


def test_scoreboard_json_has_the_public_format() -> None:
    board = json.loads(json.dumps(scoreboard_json(rows())))
    assert [entry["model"] for entry in board["rows"]] == ["weak", "strong", "twin"]
    keys = {"model", "protocol", "refit", "users", "requests", "metrics", "intervals", "slices"}
    assert keys | {"name", "run", "parameters", "train_seconds", "p50_ms", "p99_ms", "cpu_ms"} == set(board["rows"][0])


def test_a_similar_model_is_within_noise_and_a_worse_one_is_not() -> None:
    marks = noise_marks(rows(), "recall@10")
    assert marks[0] is False
    assert set(marks) == {0, 2}
    assert marks[2] is True
    assert noise_marks(rows(), "coverage@10") == {}


def test_the_table_marks_best_and_noise_and_contains_the_protocol() -> None:
    out = io.StringIO()
    print_scoreboard(rows(), console=Console(file=out, width=200))
    text = out.getvalue()
    assert "protocol time, 400 requests, trained on training events only" in text
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert lines["strong"].count("*") >= 2
    assert "~" in lines["twin"]
    assert "~" not in lines["weak"]
    assert "0.1250" in lines["strong"]
    assert "within noise of the best" in text


def test_the_evaluation_of_one_model_is_printed_with_slices() -> None:
    out = io.StringIO()
    print_evaluation(rows()[1].evaluation, console=Console(file=out, width=120))
    assert "recall@10" in out.getvalue()
    assert "cold" in out.getvalue()


def test_parts_of_a_blend_are_printed_a_line_each() -> None:
    gains = {"recall@10": [0.02, 0.01, 0.03], "ndcg@10": [-0.001, -0.002, 0.0]}
    figures = {"metrics": {"recall@10": 0.1, "ndcg@10": 0.05}, "gains": gains}
    part = {"name": "near", "weight": 0.625, "transform": "share", "temperature": 1.0, **figures}
    line = (
        "  near: weight 0.625 (share); alone recall@10 0.1000, ndcg@10 0.0500; blend minus near: "
        "recall@10 +0.0200 (+0.0100 .. +0.0300), ndcg@10 -0.0010 (-0.0020 .. +0.0000)"
    )
    assert part_line(part) == line
    out = io.StringIO()
    evaluation = replace(rows()[1].evaluation, parts=[part, {**part, "name": "far"}])
    print_evaluation(evaluation, console=Console(file=out, width=60))
    print_scoreboard([replace(rows()[1], evaluation=evaluation)], console=Console(file=out, width=60))
    assert out.getvalue().splitlines().count(line) == 2


def test_terminal_and_report_have_the_same_marks_and_lower_log_loss_is_better() -> None:
    loss = Column("log-loss", "log_loss", 4, False)
    entries = [replace(entry, evaluation=replace(entry.evaluation, metrics={"log_loss": value}))
               for entry, value in zip(rows(), (0.5, 0.3, float("nan")), strict=True)]  # fmt: skip
    assert column_marks(entries, loss) == ["", "best", ""]
    assert [cell[-1] for cell in _cells(entries, loss)] == [" ", "*", " "]
    assert ["★" in cell for cell in _figures(entries, loss)] == [False, True, False]
    assert best_marks([0.0, 0.0, None]) == ["", "", ""]


def test_users_are_counted_once_and_unknown_visitors_each() -> None:
    batch = SequenceBatch(Jagged.from_rows([[1]] * 5), user_ids=torch.tensor([7, 7, 9, 0, 0]))
    assert num_users(batch) == 4  # two users with an id, and two unknown visitors
    assert num_users(SequenceBatch(Jagged.from_rows([[1]]))) is None
