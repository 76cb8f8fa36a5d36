"""Table of the importers by name; importing it loads no other module of the package's importers."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nextitem.core.errors import UserError

_GIB = 1 << 30


@dataclass(frozen=True)
class Importer:
    """One importer: its code, the files that it expects, and the data set that it writes.

    Attributes:
        path: "module:function" in nextitem.data.importers; the function fills a folder with tables.
        expects: the expected files, in words.
        becomes: the resulting data set, in words.
        files: groups of file name patterns (! excludes); of every group at least one file must exist.
        published_rows: number of rows of the published log, if it is known.
        published_md5: MD5 of the published archive, if there is a single one.
        max_bytes: size limit of a single unpacked file, in bytes; a larger one is refused.

    """

    path: str
    expects: str
    becomes: str
    files: tuple[tuple[str, ...], ...]
    published_rows: int | None = None
    published_md5: str | None = None
    max_bytes: int = 4 * _GIB

    def load(self) -> Callable[..., dict[str, Any]]:
        """Import the module, and return the function that fills a folder with tables."""
        module, _, name = self.path.partition(":")
        function: Callable[..., dict[str, Any]] = getattr(import_module(f"nextitem.data.importers.{module}"), name)
        return function


_DAT = (("ratings.dat",), ("movies.dat",))
_CSV = (("ratings.csv",), ("movies.csv",))
_STARS = "ratings with their times; titles, genres, years"

DATASETS: dict[str, Importer] = {
    "ml-100k": Importer(
        "movielens:import_100k",
        "ml-100k.zip, or its folder (u.data, u.item, u.user)",
        f"{_STARS}; age, gender and occupation of users",
        (("u.data",), ("u.item",), ("u.user",)),
        100_000,
        "0e33842e24a9c977be4e0107933c0723",
    ),
    "ml-1m": Importer(
        "movielens:import_1m",
        "ml-1m.zip, or its folder (ratings.dat, movies.dat, users.dat)",
        f"{_STARS}; age group, gender and occupation of users",
        (*_DAT, ("users.dat",)),
        1_000_209,
        "c4d9eecfca2ab87c1945afe126590906",
    ),
    "ml-10m": Importer(
        "movielens:import_10m",
        "ml-10m.zip, or its folder (ratings.dat, movies.dat)",
        _STARS,
        _DAT,
        10_000_054,
        "ce571fd55effeba0271552578f2648bd",
    ),
    "ml-20m": Importer(
        "movielens:import_csv",
        "ml-20m.zip, or its folder (ratings.csv, movies.csv)",
        _STARS,
        _CSV,
        20_000_263,
        "cd245b17a1ae2cc31bb14903e1204af3",
    ),
    "ml-25m": Importer(
        "movielens:import_csv",
        "ml-25m.zip, or its folder (ratings.csv, movies.csv)",
        _STARS,
        _CSV,
        25_000_095,
        "6b51fb2759a8657d3bfcbfc42b592ada",
    ),
    "ml-32m": Importer(
        "movielens:import_csv",
        "ml-32m.zip, or its folder (ratings.csv, movies.csv)",
        _STARS,
        _CSV,
        32_000_204,
        "d472be332d4daa821edc399621853b57",
    ),
    "ml-latest": Importer(
        "movielens:import_csv", "ml-latest.zip, or its folder (ratings.csv, movies.csv)", _STARS, _CSV
    ),
    "ml-latest-small": Importer(
        "movielens:import_csv", "ml-latest-small.zip, or its folder (ratings.csv, movies.csv)", _STARS, _CSV, 100_836
    ),
    "amazon14": Importer(
        "amazon_2014:import_amazon_2014",
        "reviews_CATEGORY_5.json.gz, reviews_CATEGORY.json.gz or ratings_CATEGORY.csv; "
        "meta_CATEGORY.json.gz if you have it",
        "ratings with their days; title, brand, price, categories, description of the products in the log",
        (("reviews_*.json", "ratings_*.csv"),),
        max_bytes=64 * _GIB,
    ),
    "amazon18": Importer(
        "amazon_2014:import_amazon_2018",
        "CATEGORY_5.json.gz, CATEGORY.json.gz or CATEGORY.csv; meta_CATEGORY.json.gz if you have it",
        "as amazon14",
        (("*.json", "*.csv", "!meta_*"),),
        max_bytes=64 * _GIB,
    ),
    "amazon23": Importer(
        "amazon_2023:import_amazon_2023",
        "CATEGORY.jsonl.gz (reviews), CATEGORY.csv.gz (ratings), or CATEGORY.train/.valid/.test.csv.gz (benchmark); "
        "meta_CATEGORY.jsonl.gz if you have it",
        "ratings with their times, the published split if there is one; title, brand, price, categories, description",
        (("*.jsonl", "*.csv", "!meta_*"),),
        max_bytes=128 * _GIB,
    ),
    "recbole": Importer(
        "recbole:import_recbole",
        "NAME.inter, or NAME.train.inter with .valid.inter and .test.inter; NAME.item and NAME.user if you have them",
        "the log with its split; every typed column as a feature, float_seq of items as content vectors",
        (("*.inter",),),
        max_bytes=64 * _GIB,
    ),
    "letter": Importer(
        "letter:import_letter",
        "NAME.inter.json of LETTER or LC-Rec; NAME.item.json if you have it",
        "sequences of item numbers without times; titles and descriptions; for letter-ids",
        (("*.inter.json",),),
    ),
    "kuairand-pure": Importer(
        "kuairand:import_pure",
        "KuaiRand-Pure.tar.gz, or its folder (log_*_pure.csv, user_features_pure.csv, video_features_basic_pure.csv)",
        "impressions with eleven signals and tab, random exposures marked by policy; clicks as the log; features",
        (("log_standard_*_pure*.csv", "log_random_*_pure*.csv"), ("user_features_pure.csv",)),
        2_622_668,
        max_bytes=64 * _GIB,
    ),
    "kuairand-1k": Importer(
        "kuairand:import_1k",
        "KuaiRand-1K.tar.gz, or its folder (log_*_1k.csv, user_features_1k.csv, video_features_basic_1k.csv)",
        "as kuairand-pure",
        (("log_standard_*_1k*.csv", "log_random_*_1k*.csv"), ("user_features_1k.csv",)),
        11_756_073,
        max_bytes=64 * _GIB,
    ),
    "kuairand-27k": Importer(
        "kuairand:import_27k",
        "KuaiRand-27K.tar.gz, or its folder (log_*_27k*.csv, user_features_27k.csv, video_features_basic_27k.csv)",
        "as kuairand-pure",
        (("log_standard_*_27k*.csv", "log_random_*_27k*.csv"), ("user_features_27k.csv",)),
        323_464_444,
        max_bytes=64 * _GIB,
    ),
    "steam": Importer(
        "steam:import_steam",
        "steam_reviews.json.gz; steam_games.json.gz if you have it",
        "reviews with their days and hours played; title, developer, genres, tags, price, release date of games",
        (("steam_reviews.json", "steam_new.json"),),
        7_793_069,
        max_bytes=64 * _GIB,
    ),
    "retailrocket": Importer(
        "retailrocket:import_retailrocket",
        "events.csv; item_properties_part1.csv, item_properties_part2.csv and category_tree.csv if you have them",
        "views, carts and transactions; the path of categories and the hashed properties of items",
        (("events.csv",),),
        2_756_101,
    ),
    "yoochoose": Importer(
        "yoochoose:import_yoochoose",
        "yoochoose-clicks.dat, yoochoose-buys.dat (unpack the .7z first)",
        "anonymous sessions of clicks and buys; category of the click, price and quantity of the buy",
        (("yoochoose-clicks.dat",),),
        33_003_944,
    ),
    "diginetica": Importer(
        "diginetica:import_diginetica",
        "train-item-views.csv; train-purchases.csv, products.csv, product-categories.csv if you have them",
        "anonymous sessions of views and purchases; price, category and name (hashed words) of products",
        (("train-item-views.csv",),),
        1_235_380,
    ),
    "online-retail": Importer(
        "online_retail:import_online_retail",
        "online+retail.zip, Online Retail.xlsx, or the same as .csv",
        "product lines of registered customers, cancellations as context; titles, prices, countries",
        (("online*retail*.xlsx", "*.csv"),),
        541_909,
    ),
    "online-retail-ii": Importer(
        "online_retail:import_online_retail_ii",
        "online+retail+ii.zip, online_retail_II.xlsx, or the same as .csv",
        "as online-retail, over two years",
        (("online*retail*.xlsx", "*.csv"),),
        1_067_371,
    ),
}


@dataclass(frozen=True)
class IdentifierFormat:
    """Format of semantic IDs of another project.

    Attributes:
        expects: the expected files, in words.
        becomes: the result, in words.

    """

    expects: str
    becomes: str


IDENTIFIERS: dict[str, IdentifierFormat] = {
    "letter-ids": IdentifierFormat(
        "NAME.index.json of LETTER or LC-Rec, and --data; NAME.item2id if its keys are numbers",
        "a folder of semantic IDs for train --ids",
    ),
    "minionerec-ids": IdentifierFormat(
        "NAME.index.json of MiniOneRec, and --data; NAME.item2id if its keys are numbers",
        "a folder of semantic IDs for train --ids",
    ),
    "grid-ids": IdentifierFormat(
        "merged_predictions_tensor.pt of GRID, and --data; a table of item id and number as --item-ids",
        "a folder of semantic IDs for train --ids",
    ),
}


def find_importer(name: str) -> Importer:
    """Return the importer of a data set; raise UserError that lists all names if the name is unknown."""
    if name in DATASETS:
        return DATASETS[name]
    names = [*DATASETS, *IDENTIFIERS]
    close_names = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1)
    hint = f"did you mean {close_names[0]}? " if close_names else ""
    raise UserError(f"there is no importer {name!r}; {hint}there are: {', '.join(names)}")
