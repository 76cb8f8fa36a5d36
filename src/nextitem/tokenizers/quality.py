"""Quality of semantic IDs: a report of figures, and a test whether they have collapsed.

Shapes: N items, n rows, D content width, M levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.config import Config
from nextitem.tokenizers.tokenizer import Tokenizer

_NUM_NEIGHBOURS = 10  # nearest items whose codes are compared with an item's
_SAMPLE = 2000  # items whose neighbours are looked up; a share over 2,000 items has an error of about one percent


class QualityConfig(Config):
    """Thresholds beyond which a tokenizer counts as collapsed.

    Shares are relative to what the content allows: items with equal content have equal codes.
    """

    min_usage: float = Field(0.2, ge=0, le=1)
    """Minimum share of the first level's usable codes that items use; of the best level if levels are independent."""
    min_entropy_share: float = Field(0.4, ge=0, le=1)
    """Minimum entropy of the first level's codes, as a share of its maximum; of the best level if independent."""
    max_collision_rate: float = Field(0.9, ge=0, le=1)
    """Maximum share of different content vectors whose codes another content vector has too."""
    min_distinct_share: float = Field(0.02, ge=0, le=1)
    """Minimum number of different content vectors per item; below it, content cannot tell items apart."""
    excused_error: float = Field(0.1, ge=0)
    """Relative error of decoded vectors up to which collisions are excused, as such items are near-duplicates."""


def quality_report(tokenizer: Tokenizer, catalog: Catalog, codes: Tensor) -> dict[str, Any]:
    """Return figures of the quality of codes, before collisions are resolved.

    Args:
        tokenizer: the tokenizer that produced the codes.
        catalog: the items.
        codes: [N, M], the codes of the items.

    Returns:
        These figures by name:

        * items, distinct_contents: numbers of items and of different content vectors (of different vectors of content
          and transitions, if codes are made from both).
        * collision_rate: share of items whose codes another item has too.
        * avoidable_collision_rate: share of different content vectors whose codes another one has too.
        * largest_group: largest number of items with the same codes.
        * coarse_to_fine: whether a code refines those before it.
        * levels: for each level codebook_size; used, the number of codes in use; usage, used codes over the number that
          could be used (codes or different contents, whichever is smaller); entropy_bits; entropy_share, of its maximum
          (0 if all items have one code); gini (0: codes are used evenly).
        * reconstruction_error: sum of squared distances to the decoded vectors, over those to the mean; missing if
          there is no content.
        * neighbours_sharing_prefix: share of an item's 10 nearest other items by cosine that share its first code, its
          first two, ...; null if there is one item; missing if there is no content.
        * chance_sharing_prefix: the same for two items sampled at random.
        * transitions_sharing_prefix: the same for two different items in succession in the training events of a user,
          if the tokenizer reads transitions.
        * largest_exposure: exposure of the largest cluster of each level but the last, over the mean, if the tokenizer
          reads events.
        * attribute_levels: number of first levels whose codes are values of an attribute; missing if there are none.

    """
    content = tokenizer.item_content(catalog)
    report = codes_report(
        codes,
        tokenizer.codebook_sizes,
        content=content if content.shape[1] else None,
        inputs=tokenizer.inputs(catalog),
        coarse_to_fine=tokenizer.coarse_to_fine,
    )
    report |= tokenizer.figures(codes)
    if content.shape[1]:
        report["reconstruction_error"] = _relative_error(content, tokenizer.decode(codes))
    return report


def codes_report(
    codes: Tensor,
    codebook_sizes: tuple[int, ...],
    *,
    content: Tensor | None,
    inputs: Tensor | None = None,
    coarse_to_fine: bool = True,
) -> dict[str, Any]:
    """Return the figures of `quality_report` that need no tokenizer, for codes that come from elsewhere.

    Args:
        codes: [N, M], the codes of the items.
        codebook_sizes: number of codes of each level.
        content: content vectors [N, D]. None: the report has no figures about neighbours.
        inputs: vectors [N, ...] from which the codes were made; items with equal vectors count as equal. None: those of
            the content; if there is none either, every item counts as different from the others.
        coarse_to_fine: whether a code refines those before it.

    """
    groups = _group_sizes(codes)
    report: dict[str, Any] = {
        "items": len(codes),
        "collision_rate": _share(groups > 1),
        "largest_group": int(groups.max()),
        "coarse_to_fine": coarse_to_fine,
    }
    inputs = content if inputs is None else inputs
    if inputs is None:
        report |= {"distinct_contents": len(codes), "avoidable_collision_rate": report["collision_rate"]}
    else:
        distinct, inverse = torch.unique(inputs, dim=0, return_inverse=True)
        # One row for each different content: any of the equal rows, since equal content has equal codes.
        representatives = torch.zeros(len(distinct), dtype=torch.int64).scatter_(0, inverse, torch.arange(len(inverse)))
        report["distinct_contents"] = len(distinct)
        report["avoidable_collision_rate"] = _share(_group_sizes(codes[representatives]) > 1)
    if content is not None:
        report |= _neighbours(content, codes)
    count = report["distinct_contents"]
    report["levels"] = [_level(codes[:, level], size, count) for level, size in enumerate(codebook_sizes)]
    return report


def collapse_warning(report: Mapping[str, Any], config: QualityConfig) -> str | None:
    """Return how a tokenizer has collapsed, as part of a sentence.

    `report` is that of `quality_report` or `codes_report`. Returns None if the tokenizer has not collapsed, or if there
    is only one item.
    """
    if report["items"] < 2:
        return None
    # If levels are independent, some of them may contain no information: the best one counts.
    is_ordered = report.get("coarse_to_fine", True)
    levels = report["levels"][report.get("attribute_levels", 0) :]  # values of an attribute are as uneven as they are
    first = levels[0] if is_ordered else max(levels, key=lambda level: level["entropy_share"])
    items, code_kind = f"{report['items']:,} items", "first codes" if is_ordered else "codes of any level"
    if first["entropy_share"] < config.min_entropy_share or first["usage"] < config.min_usage:
        return (
            f"the tokenizer has collapsed: {items} use {first['used']} of {first['codebook_size']} {code_kind}, with "
            f"{first['entropy_share']:.0%} of the largest entropy (at least {config.min_usage:.0%} of the usable codes "
            f"and {config.min_entropy_share:.0%} are required)"
        )
    if report["distinct_contents"] < config.min_distinct_share * report["items"]:
        return (
            f"content cannot tell items apart: {items} have {report['distinct_contents']:,} different contents "
            f"(at least {config.min_distinct_share:.0%} are required)"
        )
    rate, error = report["avoidable_collision_rate"], report.get("reconstruction_error")  # None: unknown
    if rate > config.max_collision_rate and (error is None or error > config.excused_error):
        error_note = "" if error is None else f", and decoded vectors have an error of {error:.0%}"
        return (
            f"the tokenizer has collapsed: {rate:.0%} of {items} with different content share their codes with another "
            f"(at most {config.max_collision_rate:.0%} are allowed){error_note}"
        )
    return None


def _level(codes: Tensor, size: int, num_distinct: int) -> dict[str, Any]:
    """Return the figures of one level: `codes [N]` of `size`, for `num_distinct` different contents."""
    counts = torch.bincount(codes, minlength=size).double()
    shares = counts[counts > 0] / counts.sum()
    bits = float(-(shares * shares.log2()).sum())
    num_usable = min(size, num_distinct)
    ranks = torch.arange(1, size + 1, dtype=torch.float64)
    gini = float((2 * ranks - size - 1) @ counts.sort().values / (size * counts.sum()))
    return {
        "codebook_size": size,
        "used": len(shares),
        "usage": len(shares) / num_usable,
        "entropy_bits": abs(bits),
        "entropy_share": abs(bits) / math.log2(num_usable) if num_usable > 1 else 0.0,
        "gini": gini,
    }


def _group_sizes(codes: Tensor) -> Tensor:
    """Return how many rows of `codes [n, M]` are equal to each row, itself included, [n]."""
    inverse, counts = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)[1:]
    sizes: Tensor = counts[inverse]
    return sizes


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _relative_error(content: Tensor, decoded: Tensor) -> float:
    """Return the squared error of `decoded [N, D]` over the squared deviation of `content [N, D]` from its mean."""
    spread = float((content - content.mean(0)).double().square().sum())
    error = float((content - decoded).double().square().sum())
    return error / spread if spread > 0 else 0.0


def _neighbours(content: Tensor, codes: Tensor) -> dict[str, list[float] | None]:
    """Return how often near and random items share prefixes of codes, by prefix length; None if there is one item."""
    count, depth = codes.shape
    if count < 2:
        return {"neighbours_sharing_prefix": None, "chance_sharing_prefix": None}
    unit = torch.nn.functional.normalize(content, dim=1)
    sample = torch.arange(0, count, -(-count // _SAMPLE))
    shared = torch.zeros(depth, dtype=torch.float64)
    for rows in torch.split(sample, 64):
        similarity = unit[rows] @ unit.T
        similarity[torch.arange(len(rows)), rows] = -torch.inf  # an item is not its own neighbour
        nearest = similarity.topk(min(_NUM_NEIGHBOURS, count - 1), dim=1).indices
        same = (codes[nearest] == codes[rows][:, None]).cumprod(2)
        shared += same.double().mean(1).sum(0)
    chance = []
    for length in range(1, depth + 1):
        sizes = torch.unique(codes[:, :length], dim=0, return_counts=True)[1].double()
        chance.append(float((sizes * (sizes - 1)).sum() / (count * (count - 1))))
    return {"neighbours_sharing_prefix": (shared / len(sample)).tolist(), "chance_sharing_prefix": chance}
