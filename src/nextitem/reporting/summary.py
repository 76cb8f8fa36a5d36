"""Summary of a comparison in plain words: which differences are real, what leads in what, what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextitem.evaluation.evaluate import Evaluation
from nextitem.reporting.comparisons import Comparisons, compare_pairs, pairs_table
from nextitem.reporting.elements import bold, bullets, listed
from nextitem.reporting.fronts import front, points_of
from nextitem.reporting.scoreboard import ReportRow

LISTS, IMPRESSIONS = "recall@10", "gauc"
UNTRAINED_GRAPH = "item-graph"  # a model without trained weights, which every trained model should beat
FEW_REQUESTS = 500
NOTABLE_COLD = 0.01  # share of cold targets from which on the summary has a sentence on them


def summary(rows: Sequence[ReportRow], *, price_per_core_hour: float) -> str:
    """Return the section, with the prices of requests at this price of one processor core for an hour."""
    if not rows:
        return ""
    metric = IMPRESSIONS if rows[0].evaluation.protocol == "impressions" else LISTS
    comparisons = compare_pairs(rows, metric)
    cards = [
        ("Accuracy", accuracy_sentences(rows, metric, comparisons)),
        ("Variety", variety_sentences(rows)),
        ("Probabilities", probability_sentences(rows)),
        ("Speed and cost", speed_sentences(rows, comparisons, price_per_core_hour)),
        ("Be careful", caveats(rows, comparisons)),
    ]
    parts = "".join(
        f'<div class="card"><h3>{title}</h3>{bullets(sentences)}</div>' for title, sentences in cards if sentences
    )
    pairs = "" if comparisons is None else pairs_table(rows, comparisons)
    return f'<h2>In short</h2><div class="grid summary">{parts}</div>{pairs}'


def accuracy_sentences(rows: Sequence[ReportRow], metric: str, comparisons: Comparisons | None) -> list[str]:
    """Return who leads, by how much of 100, and whether that is more than chance; then the others, best first."""
    figures = {index: row.evaluation.metrics.get(metric, float("nan")) for index, row in enumerate(rows)}
    judged = sorted((index for index in figures if figures[index] >= 0), key=lambda index: -figures[index])
    if not judged:
        return ["These requests judge no model."]
    leader = judged[0]
    name = bold([rows[leader].name])
    share, verb = f"{100 * figures[leader]:.1f}", "finds" if metric == LISTS else "orders"
    if metric == LISTS:
        first = f"Of 100 held-out items, {name} {verb} {share} among its first ten recommendations"
    else:
        first = (
            f"Of 100 pairs of a positive and a negative impression of one user, {name} {verb} {share} correctly "
            "(by guessing: 50)"
        )
    if comparisons is None:
        others = len(judged) > 1
        return [f"{first}{', the highest figure; the models cannot be compared request by request' * others}."]
    tiers = comparisons.tiers()
    sentences = [f"{first}: the most." + _no_difference(rows, tiers[0], metric)]
    for tier in tiers[1:]:
        head = tier[0]
        lead = comparisons.difference(leader, head)
        size = f"{100 * lead.mean:.1f} fewer than {name} (95% interval {100 * lead.low:.1f} to {100 * lead.high:.1f})"
        subject = bold([rows[head].name])
        verdict = (
            f"{size}. This is more than chance."
            if comparisons.is_real(leader, head)
            else f"{size}. This could be chance."  # a model between the two does better than this one
        )
        sentences.append(f"{subject} {verb} {100 * figures[head]:.1f}: {verdict}" + _no_difference(rows, tier, metric))
    return sentences


def _no_difference(rows: Sequence[ReportRow], tier: Sequence[int], metric: str) -> str:
    """Return a sentence on the rows of a group that do not really differ from its first; empty if there are none."""
    if len(tier) < 2:
        return ""
    names = (f"{bold([rows[index].name])} ({100 * rows[index].evaluation.metrics[metric]:.1f})" for index in tier[1:])
    return f" No real difference to {listed(list(names))}."


def variety_sentences(rows: Sequence[ReportRow]) -> list[str]:
    """Return which models recommend most of the catalogue, the most different and the rarest items."""
    evaluations = [row.evaluation for row in rows]
    sentences = []
    widest = _best(evaluations, "coverage@10")
    if widest:
        share = evaluations[widest[0]].metrics["coverage@10"]
        sentences.append(
            f"Largest part of the catalogue: {_named(rows, widest)}, {share:.0%} of its items in any list."
        )
    for metric, title in (("diversity@10", "Most different items in a list"), ("novelty@10", "Rarest items")):
        comparisons = compare_pairs(rows, metric)
        if comparisons is not None:
            first, *others = comparisons.tiers()[0]
            equals = f" No real difference to {_named(rows, others)}." if others else " This is more than chance."
            sentences.append(f"{title}: {_named(rows, [first])}.{equals}")
    members = front(points_of(evaluations, "coverage@10"))
    if members and len(rows) > 1:
        sentences.append(f"No model beats these in accuracy and coverage at once: {_named(rows, members)}.")
    return sentences


def probability_sentences(rows: Sequence[ReportRow]) -> list[str]:
    """Return by how much the probabilities of rankers are off, best first."""
    errors = {
        index: row.evaluation.metrics["calibration_error"]
        for index, row in enumerate(rows)
        if row.evaluation.metrics.get("calibration_error", float("nan")) >= 0
    }
    return [
        f"{_named(rows, [index])}: a predicted probability is off by {100 * errors[index]:.2g} percentage points on "
        "average."
        for index in sorted(errors, key=lambda index: errors[index])
    ]


def speed_sentences(
    rows: Sequence[ReportRow], comparisons: Comparisons | None, price_per_core_hour: float
) -> list[str]:
    """Return the time and cost of the fastest and of the most accurate model, and the fastest that is as accurate."""
    timed = [index for index, row in enumerate(rows) if row.p50_ms > 0]
    if not timed:
        return []
    fastest = min(timed, key=lambda index: rows[index].p50_ms)

    def facts(index: int) -> str:
        cost = cost_per_thousand(rows[index], price_per_core_hour)
        priced = "" if cost is None else f"; a million requests cost {amount(1000 * cost)}"
        return f"{_named(rows, [index])}, {_ms(rows[index].p50_ms)} for one request (median){priced}"

    sentences = [f"Fastest: {facts(fastest)}."]
    if comparisons is None:
        return sentences
    leaders = comparisons.tiers()[0]
    leader = leaders[0]
    if leader != fastest:
        factor = rows[leader].p50_ms / rows[fastest].p50_ms
        times = f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"
        sentences.append(f"Most accurate: {facts(leader)}. That is {times} times as long.")
    cheapest = min(leaders, key=lambda index: rows[index].p50_ms)
    if cheapest not in (leader, fastest):
        sentences.append(f"As accurate, as far as these requests show, and faster: {facts(cheapest)}.")
    return sentences


def caveats(rows: Sequence[ReportRow], comparisons: Comparisons | None) -> list[str]:
    """Return what a reader should know before they act on the figures."""
    first = rows[0].evaluation
    sentences = []
    if first.requests < FEW_REQUESTS:
        sentences.append(f"These are only {first.requests:,} requests: most differences cannot be told from chance.")
    if comparisons is not None:
        leader, second = comparisons.order[:2]
        difference = comparisons.difference(leader, second)
        width = 50 * (difference.high - difference.low)
        if width < float("inf"):
            sentences.append(
                f"The two best models could not be told apart if they differed by less than about {width:.1f} of 100."
            )
        sentences += _graph_sentences(rows, comparisons)
    if first.protocol == "leave-one-out":
        sentences.append("Protocol leave-one-out: models may have learned from later events of other customers.")
    cold = first.slices.get("cold", {}).get("requests", 0)
    if cold >= NOTABLE_COLD * max(1, first.requests):
        share = cold / first.requests
        sentences.append(
            f"{share:.1%} of the requests ask for an item without any training event; see the column cold recall@10."
        )
    if any(row.parameters > 0 for row in rows):
        sentences.append("Each model was trained with one seed. Repeat with other seeds before a close decision.")
    if first.protocol == "impressions":
        sentences.append("The impressions were chosen by the recommender that logged them, and so favour it.")
    else:
        sentences.append(
            "What counts is what customers did without these lists. Whether a list would change what they do is a "
            "question for a live test."
        )
    sentences.append("Times are of one request at a time on this machine; a server that batches requests costs less.")
    return sentences


def _graph_sentences(rows: Sequence[ReportRow], comparisons: Comparisons) -> list[str]:
    """Return a sentence on the trained models that are not really better than the untrained item graph."""
    graphs = [index for index in comparisons.order if rows[index].name == UNTRAINED_GRAPH]
    if not graphs:
        return []
    graph = graphs[0]
    weak = [
        index
        for index in comparisons.order
        if index != graph
        and rows[index].parameters > 0
        and not (comparisons.difference(index, graph).mean > 0 and comparisons.is_real(index, graph))
    ]
    if not weak:
        return []
    verb = "is" if len(weak) == 1 else "are"
    return [
        f"{_named(rows, weak)} {verb} not really better than {bold([UNTRAINED_GRAPH])}, which counts what follows what "
        "and has no trained weights."
    ]


def cost_per_thousand(row: ReportRow, price_per_core_hour: float) -> float | None:
    """Return the price of the processor time of 1,000 requests, one at a time; None if it was not measured."""
    return row.cpu_ms / 3600 * price_per_core_hour if row.cpu_ms >= 0 else None  # ms of 1,000 requests are seconds


def amount(value: float) -> str:
    """Return an amount of money with two significant digits, without an exponent."""
    if value <= 0:
        return "0"
    digits = 0
    while digits < 9 and value * 10**digits < 10:
        digits += 1
    return f"{value:,.{digits}f}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2g} ms" if milliseconds < 10 else f"{milliseconds:,.0f} ms"


def _best(evaluations: Sequence[Evaluation], metric: str) -> list[int]:
    """Return the rows with the highest value of a metric; none if no row has a value above 0."""
    values: Mapping[int, float] = {
        index: evaluation.metrics[metric]
        for index, evaluation in enumerate(evaluations)
        if evaluation.metrics.get(metric, 0) > 0
    }
    return [index for index in values if values[index] == max(values.values())]


def _named(rows: Sequence[ReportRow], indices: Sequence[int]) -> str:
    return bold([rows[index].name for index in indices])
