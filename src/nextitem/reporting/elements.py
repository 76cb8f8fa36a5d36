"""Parts of an HTML page that its sections share: tables that can be sorted, their cells, legends and lists."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nextitem.reporting import plots


def table(
    titles: Sequence[str],
    lines: Sequence[str],
    *,
    groups: str = "",
    caption: str = "",
    descending: Sequence[str] | None = None,
) -> str:
    """Return a table that scrolls within its own box.

    Args:
        titles: titles of the columns, as text; none if `groups` are the titles.
        lines: cells of each row, as HTML.
        groups: header cells above the titles, as HTML.
        caption: what the table contains, for screen readers.
        descending: titles of the columns whose largest values come first when the table is sorted by them; None: the
            table cannot be sorted.

    Returns:
        The table as HTML.

    """
    heads = "".join(
        f'<th scope="col"{" data-first=descending" * (title in (descending or ()))}>{escape(title)}</th>'
        for title in titles
    )
    head = f"<tr>{groups}</tr>" * bool(groups) + f"<tr>{heads}</tr>" * bool(titles)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    label = f' aria-label="{escape(caption)}"' if caption else ""
    return (
        f'<div class="wide" tabindex="0" role="region"{label or " aria-label=table"}>'
        f"<table{' class=sortable' * (descending is not None)}{label}>"
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def cell(html: str, *, value: float | None, is_best: bool = False) -> str:
    """Return a table cell.

    Args:
        html: contents of the cell, as HTML.
        value: number by which the row is sorted; rows with None or NaN come last in either order.
        is_best: whether to mark the figure as the best of its column.

    """
    number = "" if value is None or value != value else f"{value:.9g}"
    return f'<td{" class=best" * is_best} data-value="{number}">{"★&nbsp;" * is_best}{html}</td>'


def legend(names: Sequence[str]) -> str:
    """Return the list of all models with their markers, in the order of the scoreboard."""
    return f'<ul class="legend">{"".join(f"<li>{legend_name(*entry)}</li>" for entry in enumerate(names))}</ul>'


def legend_name(index: int, name: str) -> str:
    """Return a model's name behind the marker of row `index` of the scoreboard."""
    return f'<span class="mark" style="color:{plots.color(index)}">{plots.text_marker(index)}</span>{escape(name)}'


def bold(names: Sequence[str]) -> str:
    """Return names in bold, as a sentence lists them."""
    return listed([f"<b>{escape(name)}</b>" for name in names])


def listed(parts: Sequence[str]) -> str:
    """Return parts as a sentence lists them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def bullets(sentences: Sequence[str]) -> str:
    """Return sentences, as HTML, as the points of a list."""
    return f"<ul>{''.join(f'<li>{sentence}</li>' for sentence in sentences)}</ul>"
