"""Families that `nextitem scale` knows: which settings grow with the size, and which function counts the operations.

This is the one place where a family is added: a line of `FAMILIES`, and a counter in `pipeline.scaling.flops`. A size
is a factor: widths are multiplied by it, depths by its square root.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nextitem.core.errors import UserError


@dataclass(frozen=True)
class Family:
    """How a model grows, and who counts its operations.

    Attributes:
        widths: settings that are multiplied by the size: numbers, or lists of numbers.
        depths: settings that are multiplied by the square root of the size, at least 1.
        counter: name of the function of `pipeline.scaling.flops` that counts the operations of a training batch.
        multiple_of: setting that has to divide the widths (a number of heads); None: none.
        fixed: settings that a study needs to have these values, since the counter, or the loss, covers no others.

    """

    widths: tuple[str, ...]
    depths: tuple[str, ...]
    counter: str
    multiple_of: str | None = None
    fixed: tuple[tuple[str, Any], ...] = ()

    def settings(self, table: Mapping[str, Any], size: float) -> dict[str, Any]:
        """Return the settings of a size, from those of size 1 (a table of a model's settings)."""
        divisor = 1 if self.multiple_of is None else int(table[self.multiple_of])

        def scaled(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [scaled(part) for part in value]
            return divisor * max(1, round(value * size / divisor))

        widths = {name: scaled(table[name]) for name in self.widths}
        return widths | {name: max(1, round(table[name] * math.sqrt(size))) for name in self.depths}

    def check(self, name: str, table: Mapping[str, Any]) -> None:
        """Raise UserError if a setting has a value that the counter does not cover."""
        for setting, value in self.fixed:
            if table.get(setting) != value:
                text = "none" if value is None else str(value)
                raise UserError(
                    f"model.{setting} = {table.get(setting)}: the operations of {name} are counted with {text} only; "
                    f"add --set model.{setting}={text}"
                )


FAMILIES: dict[str, Family] = {
    "sasrec": Family(
        ("width",), ("layers",), "sasrec", multiple_of="heads", fixed=(("contrastive", None), ("features", []))
    ),
    "hstu": Family(("width", "head_width"), ("layers",), "hstu"),
    "hstu-ranking": Family(
        ("token_width", "head_width"),
        ("layers",),
        "hstu_ranking",
        fixed=(("actions", "summed"), ("stochastic_length", None), ("layer_drop", 0.0)),
    ),
    "gru4rec": Family(("layers", "embedding_width"), (), "gru4rec"),
    "tiger": Family(
        ("width", "head_width", "ff_width"),
        ("encoder_layers", "decoder_layers"),
        "tiger",
        fixed=(("guide", None), ("beam_aware", 0.0), ("scheduled_sampling", 0.0)),
    ),
}


def family_of(name: str) -> Family:
    """Return the family of a registered model; UserError lists the families if there is none."""
    if name not in FAMILIES:
        raise UserError(
            f"{name} has no count of its operations, so its loss cannot be drawn over compute; there are counts of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[name]
