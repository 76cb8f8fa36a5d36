"""The first two levels of a semantic-ID tree as a treemap, in SVG: areas are numbers of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import polars as pl
import torch

from nextitem.core.identifiers import IdentifierTable

WIDTH, HEIGHT = 1000, 620
LABELLED = 12  # largest groups that are numbered on the map and named below it
CELLS = 40  # second-level cells drawn in a group; the rest is one cell
TITLES = 3


@dataclass(frozen=True)
class Group:
    """Items that share their first code: their number, and first the most used of their second codes."""

    code: int
    items: int
    cells: tuple[int, ...]  # items at each second code, falling
    titles: tuple[str, ...]  # one of each of the largest cells


Box = tuple[float, float, float, float]  # x, y, width, height


def groups(table: IdentifierTable, titles: pl.Series | None) -> list[Group]:
    """The groups of the first level, the largest first; an item without a title goes by its number."""
    codes = table.codes[1:]
    second = codes[:, 1] if table.num_levels > 1 else torch.zeros_like(codes[:, 0])
    pairs, where, counts = torch.unique(torch.stack([codes[:, 0], second], 1), dim=0, return_inverse=True,
                                        return_counts=True)  # fmt: skip
    example = torch.full((len(pairs),), len(codes)).scatter_reduce(0, where, torch.arange(len(codes)), "amin")
    found = []
    for code in torch.unique(pairs[:, 0]).tolist():
        own = (pairs[:, 0] == code).nonzero()[:, 0]
        own = own[counts[own].argsort(descending=True, stable=True)]
        items = example[own[:TITLES]].tolist()
        names = tuple(f"item {item + 1}" if titles is None else str(titles[item]) for item in items)
        found.append(Group(code, int(counts[own].sum()), tuple(counts[own].tolist()), names))
    return sorted(found, key=lambda group: -group.items)


def tree_map(tree: Sequence[Group]) -> str:
    """The map as SVG; each group tells its code, size and titles to the pointer and to screen readers."""
    parts = [f'<svg role="img" aria-label="semantic-ID tree" viewBox="0 0 {WIDTH} {HEIGHT}">']
    boxes = squarify([float(group.items) for group in tree], (0, 0, WIDTH, HEIGHT))
    for place, (group, box) in enumerate(zip(tree, boxes, strict=True)):
        hue = place * 137 % 360  # the golden angle: neighbours differ
        x, y, width, height = box
        inner = squarify(_cells(group), (x + 1, y + 1, max(0.0, width - 2), max(0.0, height - 2)))
        path = "".join(f"M{a:.1f} {b:.1f}h{c:.1f}v{d:.1f}h{-c:.1f}z" for a, b, c, d in inner)
        words = escape(f"code {group.code}: {group.items:,} items, {len(group.cells):,} second codes: "
                       + "; ".join(group.titles))  # fmt: skip
        parts.append(f'<g><title>{words}</title><path d="{path}" fill="hsl({hue} 55% 50%)" class="cell"/>')
        if place < LABELLED and width > 24 and height > 20:
            size = min(34, max(14, int(min(width / 2.2, height / 1.5))))
            middle = f'x="{x + width / 2:.1f}" y="{y + height / 2:.1f}" font-size="{size}"'
            parts.append(f'<text {middle} class="code">{group.code}</text>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Splits a box into boxes of areas in proportion to `sizes` (falling, positive), as square as rows allow.

    Bruls, Huizing and van Wijk 2000: a row takes the next size as long as its worst aspect ratio does not grow.
    """
    x, y, width, height = box
    total, place = sum(sizes), 0
    boxes: list[Box] = []
    while place < len(sizes):
        short = min(width, height)
        scale = width * height / total if total > 0 else 0.0
        end = place + 1
        worst = _worst(sizes[place:end], short, scale)
        while end < len(sizes) and (longer := _worst(sizes[place : end + 1], short, scale)) <= worst:
            end, worst = end + 1, longer
        row = sizes[place:end]
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
        place = end
    return boxes


def _worst(row: Sequence[float], short: float, scale: float) -> float:
    area = sum(row) * scale
    if area <= 0 or short <= 0:
        return float("inf")
    return max(short**2 * max(row) * scale / area**2, area**2 / (short**2 * min(row) * scale))


def _cells(group: Group) -> list[float]:
    shown, rest = group.cells[:CELLS], sum(group.cells[CELLS:])
    return sorted(map(float, (*shown, rest) if rest else shown), reverse=True)
