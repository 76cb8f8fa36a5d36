"""Treemap of the first two levels of a semantic-ID tree, as SVG: areas are numbers of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import polars as pl
import torch

from nextitem.core.identifiers import IdentifierTable

WIDTH, HEIGHT = 1000, 620
LABELLED = 12  # largest groups that are numbered on the map and named below it
CELLS = 40  # number of second-level cells drawn in a group; all other cells are drawn as one
TITLES = 3  # number of example titles of a group


@dataclass(frozen=True)
class Group:
    """Items that share their first code, with their number at each second code."""

    code: int
    items: int  # number of items
    cells: tuple[int, ...]  # number of items at each second code, largest first
    titles: tuple[str, ...]  # one title of each of the largest cells


Box = tuple[float, float, float, float]  # x, y, width, height


def groups(table: IdentifierTable, titles: pl.Series | None) -> list[Group]:
    """Return the groups of the first level, largest first.

    Args:
        table: codes of the items.
        titles: titles of items 1..N; None: items are named by their number.

    Returns:
        One group for each first code that is used.

    """
    codes = table.codes[1:]
    second = codes[:, 1] if table.num_levels > 1 else torch.zeros_like(codes[:, 0])
    pairs, pair_of_item, counts = torch.unique(torch.stack([codes[:, 0], second], 1), dim=0, return_inverse=True,
                                        return_counts=True)  # fmt: skip
    example = torch.full((len(pairs),), len(codes)).scatter_reduce(0, pair_of_item, torch.arange(len(codes)), "amin")
    result = []
    for code in torch.unique(pairs[:, 0]).tolist():
        pairs_of_code = (pairs[:, 0] == code).nonzero()[:, 0]
        pairs_of_code = pairs_of_code[counts[pairs_of_code].argsort(descending=True, stable=True)]
        items = example[pairs_of_code[:TITLES]].tolist()
        names = tuple(f"item {item + 1}" if titles is None else str(titles[item]) for item in items)
        result.append(Group(code, int(counts[pairs_of_code].sum()), tuple(counts[pairs_of_code].tolist()), names))
    return sorted(result, key=lambda group: -group.items)


def tree_map(tree: Sequence[Group]) -> str:
    """Return the treemap as SVG; a tooltip, also for screen readers, has the code, size and titles of each group."""
    parts = [f'<svg role="img" aria-label="semantic-ID tree" viewBox="0 0 {WIDTH} {HEIGHT}">']
    boxes = squarify([float(group.items) for group in tree], (0, 0, WIDTH, HEIGHT))
    for index, (group, box) in enumerate(zip(tree, boxes, strict=True)):
        hue = index * 137 % 360  # the golden angle: neighbours differ
        x, y, width, height = box
        inner = squarify(_cells(group), (x + 1, y + 1, max(0.0, width - 2), max(0.0, height - 2)))
        path = "".join(f"M{a:.1f} {b:.1f}h{c:.1f}v{d:.1f}h{-c:.1f}z" for a, b, c, d in inner)
        words = escape(f"code {group.code}: {group.items:,} items, {len(group.cells):,} second codes: "
                       + "; ".join(group.titles))  # fmt: skip
        parts.append(f'<g><title>{words}</title><path d="{path}" fill="hsl({hue} 55% 50%)" class="cell"/>')
        if index < LABELLED and width > 24 and height > 20:
            size = min(34, max(14, int(min(width / 2.2, height / 1.5))))
            middle = f'x="{x + width / 2:.1f}" y="{y + height / 2:.1f}" font-size="{size}"'
            parts.append(f'<text {middle} class="code">{group.code}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Split a box into boxes whose areas are proportional to `sizes`, as square as rows allow.

    `sizes` are positive and sorted, largest first. Bruls, Huizing and van Wijk 2000: a row takes the next size as long
    as its worst aspect ratio does not grow.
    """
    x, y, width, height = box
    total, start = sum(sizes), 0
    boxes: list[Box] = []
    while start < len(sizes):
        short = min(width, height)
        scale = width * height / total if total > 0 else 0.0
        end = start + 1
        worst = _worst(sizes[start:end], short, scale)
        while end < len(sizes) and (longer := _worst(sizes[start : end + 1], short, scale)) <= worst:
            end, worst = end + 1, longer
        row = sizes[start:end]
        thick = sum(row) * scale / short if short > 0 else 0.0
        along = y if width >= height else x
        for size in row:
            long = size * scale / thick if thick > 0 else 0.0
            boxes.append((x, along, thick, long) if width >= height else (along, y, long, thick))
            along += long
        if width >= height:
            x, width = x + thick, max(0.0, width - thick)
        else:
            y, height = y + thick, max(0.0, height - thick)
        total -= sum(row)
        start = end
    return boxes


def _worst(row: Sequence[float], short: float, scale: float) -> float:
    """Return the worst aspect ratio of the boxes of a row along the side `short`."""
    area = sum(row) * scale
    if area <= 0 or short <= 0:
        return float("inf")
    return max(short**2 * max(row) * scale / area**2, area**2 / (short**2 * min(row) * scale))


def _cells(group: Group) -> list[float]:
    """Return the sizes of the drawn cells of a group, largest first."""
    largest, rest = group.cells[:CELLS], sum(group.cells[CELLS:])
    return sorted(map(float, (*largest, rest) if rest else largest), reverse=True)
