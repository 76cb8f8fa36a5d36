"""Families: settings of a size, mistakes in settings, and texts of arguments."""

from __future__ import annotations

import pytest

from nextitem.core.errors import UserError
from nextitem.core.registry import MODELS
from nextitem.pipeline.scaling.arguments import check_arguments, numbers_of, seeds_of
from nextitem.pipeline.scaling.families import FAMILIES, family_of


def table_of(name: str, **settings: object) -> dict[str, object]:
    """Return the settings of a model as a recipe has them."""
    config = MODELS[name].load().Config(**settings)
    table: dict[str, object] = config.as_table()
    return table


def test_widths_grow_with_the_size_and_depths_with_its_root() -> None:
    sasrec = FAMILIES["sasrec"]
    table = table_of("sasrec", width=64, layers=2, heads=2)
    assert sasrec.settings(table, 4) == {"width": 256, "layers": 4}
    assert sasrec.settings(table, 1) == {"width": 64, "layers": 2}
    assert sasrec.settings(table, 1 / 8) == {"width": 8, "layers": 1}
    assert sasrec.settings(table, 0.3) == {"width": 20, "layers": 1}  # a multiple of the heads
    assert sasrec.settings(table, 1e-3) == {"width": 2, "layers": 1}
    assert FAMILIES["gru4rec"].settings(table_of("gru4rec", layers=(100, 50)), 0.5) == {
        "layers": [50, 25],
        "embedding_width": 50,
    }
    assert FAMILIES["tiger"].settings(table_of("tiger"), 2) == {
        "width": 128, "head_width": 32, "ff_width": 512, "encoder_layers": 3, "decoder_layers": 3,
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_setting_of_a_family_exists_and_the_defaults_are_counted(name: str) -> None:
    table, family = table_of(name), FAMILIES[name]
    for setting in (*family.widths, *family.depths, *(setting for setting, _ in family.fixed)):
        assert setting in table
    family.check(name, table)
    for size in (0.25, 4):
        MODELS[name].load().Config(**{**table, **family.settings(table, size)})


def test_settings_without_a_count_are_refused() -> None:
    with pytest.raises(UserError, match=r"model.beam_aware = 0.5: the operations of tiger are counted with 0.0 only"):
        FAMILIES["tiger"].check("tiger", table_of("tiger", beam_aware=0.5))
    with pytest.raises(UserError, match=r"add --set model.contrastive=none"):
        FAMILIES["sasrec"].check("sasrec", table_of("sasrec", contrastive={}))


def test_a_model_without_a_count_names_the_families() -> None:
    with pytest.raises(
        UserError, match=r"item-cf has no count of its operations.*sasrec, hstu, hstu-ranking, gru4rec, tiger"
    ):
        family_of("item-cf")


def test_numbers_are_read_as_fractions() -> None:
    assert numbers_of("--sizes", "1/8, 0.5,2") == (0.125, 0.5, 2.0)
    assert seeds_of("0,3") == (0, 3)
    with pytest.raises(UserError, match=r"--sizes '1,two': 'two' is no number"):
        numbers_of("--sizes", "1,two")
    with pytest.raises(UserError, match="'1/0' is no number"):
        numbers_of("--sizes", "1/0")
    with pytest.raises(UserError, match="a seed is a whole number"):
        seeds_of("0,0.5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (1.0,)}, "at least two sizes"),
        ({"sizes": (1.0, 1.0)}, "a number occurs twice"),
        ({"sizes": (0.0, 1.0)}, "--sizes 0,1: each has to be greater than 0"),
        ({"sizes": ()}, "--sizes is empty"),
        ({"sizes": (1.0, float("inf"))}, "each has to be greater than 0"),
        ({"data_shares": (0.5, 1.5)}, "a share of the training data is at most 1"),
        ({"seeds": (-1,)}, "a seed is at least 0"),
        ({"minutes": 0.0}, "--minutes 0.0"),
        ({"points": 0}, "--points 0"),
        ({"learning_rates": (-1.0,)}, "--learning-rates -1"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "sizes": (0.5, 1.0), "data_shares": (1.0,), "seeds": (0,), "learning_rates": (1.0,), "minutes": 1, "points": 3,
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        check_arguments(**{**arguments, **change})  # type: ignore[arg-type]
