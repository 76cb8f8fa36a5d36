"""The world of simulated customers that suits a run: the simulated shop, or one that is fitted to the run's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nextitem.core.config import parse
from nextitem.data.shop.shop import generate_shop
from nextitem.pipeline.runs import Run
from nextitem.simulation.answers import CustomerWorld
from nextitem.simulation.world import EnvironmentConfig, World

MakeWorld = Callable[[], CustomerWorld]


def world_of(
    run: Run, settings: Mapping[str, Any], *, log: Callable[[str], None] = lambda _: None
) -> tuple[MakeWorld, dict[str, Any]]:
    """Return a function that makes the world of a run, the same each time, and what is to be known of the world.

    A run whose items are those of the simulated shop meets its customers.

    Args:
        run: the run.
        settings: settings of the world.
        log: is called with lines of text.

    """
    shop = generate_shop()
    config = parse(EnvironmentConfig, settings, where="simulate")
    return (lambda: World(shop, config)), {"world": "the simulated shop", "settings": config.model_dump(mode="json")}
