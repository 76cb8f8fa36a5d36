"""The world of simulated customers that suits a run: the simulated shop, or one that is fitted to the run's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from nextitem.core.config import parse
from nextitem.data.shop.catalog import FIRST_ITEM
from nextitem.data.shop.shop import Shop, generate_shop
from nextitem.pipeline.runs import Run
from nextitem.simulation.answers import CustomerWorld
from nextitem.simulation.fitted_world import FittedConfig, FittedWorld
from nextitem.simulation.user_model import FEATURES, UserModel, fit_user_model
from nextitem.simulation.world import EnvironmentConfig, World

SHOP_ONLY = ("new_share", "drift", "new_items")  # options of the command that a log has no use for
MakeWorld = Callable[[], CustomerWorld]


def world_of(
    run: Run, settings: Mapping[str, Any], *, log: Callable[[str], None] = lambda _: None
) -> tuple[MakeWorld, dict[str, Any]]:
    """Return a function that makes the world of a run, the same each time, and what is to be known of the world.

    A run whose items are those of the simulated shop meets its customers. For any other, a model of users is fitted to
    the data of the run.

    Args:
        run: the run.
        settings: settings of the world.
        log: is called with lines of text.

    Raises:
        UserError: a setting is wrong, or no world can be fitted to the data.

    """
    shop = generate_shop() if str(FIRST_ITEM) in set(run.model.catalog.ids.external.cast(pl.String)) else None
    if shop is not None and has_items_of_shop(run, shop):
        config = parse(EnvironmentConfig, settings, where="simulate")
        return (lambda: World(shop, config)), {
            "world": "the simulated shop",
            "settings": config.model_dump(mode="json"),
        }
    values = {name: value for name, value in settings.items() if name not in SHOP_ONLY}
    fitted = parse(FittedConfig, values, where="simulate")
    dataset = run.dataset
    model = fit_user_model(dataset, click_rate=fitted.click_rate, seed=fitted.seed)
    log(f"customers: a model of the users of {dataset.name}, fitted to its log")
    for line in _fit(model):
        log(line)
    about: dict[str, Any] = {
        "world": f"a model of the users of {dataset.name}",
        "settings": fitted.model_dump(mode="json"),
        "fit": model.figures,
        "gaps": list(model.gaps),
        "weights": dict(zip(FEATURES, model.weights.tolist(), strict=True)),
    }
    return (lambda: FittedWorld(dataset, model, fitted)), about


def has_items_of_shop(run: Run, shop: Shop) -> bool:
    """Return whether most items of a run are items of the simulated shop, by id and title."""
    table = run.model.catalog.table
    if "title" not in table.columns or "item_id" not in table.columns:
        return False
    own = table.select(pl.col("item_id").cast(pl.String), pl.col("title").cast(pl.String))
    theirs = shop.items.select(pl.col("item_id").cast(pl.String), pl.col("title").cast(pl.String))
    return own.join(theirs, on=["item_id", "title"]).height * 2 > own.height


def _fit(model: UserModel) -> list[str]:
    """Return how well a model of users fits, as lines of text."""
    figures = model.figures
    source = "impressions" if figures["has_impressions"] else "clicks beside random items"
    lines = []
    if "log_loss" in figures:
        lines.append(
            f"held-out {source}: {figures['held_out']:,.0f} with {figures['clicks']:,.0f} clicks; log loss "
            f"{figures['log_loss']:.4f}, of the mean rates {figures['log_loss_of_rates']:.4f}; mean prediction "
            f"{figures['mean_prediction']:.4f}, share of clicks {figures['click_share']:.4f}; calibration error "
            f"{figures['calibration_error']:.4f}"
        )
    lines.append(
        f"days until the next visit: {model.gaps[1]:.2f} after a good visit, {model.gaps[0]:.2f} after a poor one"
    )
    if not figures["has_impressions"]:
        lines.append("the log does not tell how often items are clicked: the level is the setting click_rate")
    return lines
