"""What the fields of rankers know of the simulated shop's truth, and what more clicks could teach.

    python benchmarks/ranker_ceilings.py [--customers 16000] [--seed 0]

The log-odds of a click are a sum of parts: interest in the department, price, popularity, taste, novelty, country and
last item. Three tables, in AUC on the test impressions:

* truth: the true log-odds, without one part each.
* fields: trees that learn the true log-odds themselves from field codes, with and without the fields that compare and
  weigh (interest, relative numbers). No noise of clicks is left, so this is about what rankers with these fields could
  reach with endless clicks.
* one part known: the same trees learn the rest, and the true part is added. A large gain marks a part that the fields
  miss.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import lightgbm
import numpy as np
import torch
from measure import Results, parser
from numpy.typing import NDArray
from rankers import is_comparing

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.data.examples.labelled_candidates import impression_examples
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop import truth as shop_truth
from nextitem.data.shop.shop import generate_shop
from nextitem.data.shop.truth import ShopTruth
from nextitem.evaluation.metrics.ranking import auc
from nextitem.nn.fields.fields import Fields
from nextitem.nn.fields.kinds import CrossedWithLast, ItemCategory, ItemId, RequestCategory

Floats = NDArray[np.float64]
BATCH = 1024  # requests whose fields are encoded at a time
DAY = 86_400
TREES = {
    "objective": "regression",
    "learning_rate": 0.08,
    "num_leaves": 63,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
    "num_threads": 1,
    "seed": 0,
}


def true_parts(truth: ShopTruth, data: Dataset, requests: SequenceBatch) -> dict[str, Floats]:
    """Return the parts of the true log-odds of a click on each candidate in the first slot, [P] by name."""
    candidates, users, now = requests.candidates, requests.user_ids, requests.request_times
    assert candidates is not None
    assert users is not None
    assert now is not None
    rows = candidates.row_ids().numpy()
    people, items = data.users.numbers_of(users.numpy())[rows] - 1, candidates.values.numpy() - 1
    times = now.numpy()[rows] // 1000
    last = np.full(requests.num_requests, -1)
    full = requests.items.lengths.numpy() > 0
    last[full] = requests.items.values.numpy()[requests.items.offsets[1:].numpy()[full] - 1] - 1
    interest = truth.interests(people, times)
    interest = interest - interest.mean(axis=1, keepdims=True)
    progress = truth.change_progress(people, times)[:, None]
    taste = (1 - progress) * truth.taste_before[people] + progress * truth.taste_after[people]
    country = shop_truth.COUNTRY_WEIGHT * truth.country_taste[truth.country[people]]
    distance = truth.item_price_level[items] - truth.price_level[people]
    age = np.maximum(times - truth.released[items], 0) / DAY
    is_new = truth.released[items] > shop_truth.START
    scale = shop_truth.CLICK_SCALE
    follows = np.where(last[rows] >= 0, truth.complementarity(last[rows], items), 0.0)
    parts = {
        "interest in departments": shop_truth.CLICK_INTEREST * interest[np.arange(len(items)), truth.department[items]],
        "price that suits a customer": -scale * shop_truth.PRICE_WEIGHT * truth.price_strictness[people] * distance**2,
        "popularity": scale * shop_truth.POPULARITY_WEIGHT * truth.popularity[items],
        "own taste in looks": scale * (taste * truth.vectors[items]).sum(1),
        "taste of the country": scale * (country * truth.vectors[items]).sum(1),
        "novelty": scale * shop_truth.NOVELTY_WEIGHT * is_new * np.exp(-age / shop_truth.NOVELTY_DAYS),
        "last item": shop_truth.CLICK_COMPLEMENT * follows,
    }
    whole = truth.click_probability(people, items, times, last_items=last[rows])
    total = shop_truth.CLICK_BIAS + sum(parts.values())
    np.testing.assert_allclose(1 / (1 + np.exp(-total)), whole)  # the parts are those of the shop
    return parts


class FieldTrees:
    """Trees that learn numbers, such as true log-odds, from the codes of fields of training impressions."""

    def __init__(self, catalog: Catalog, names: tuple[str, ...], train: Dataset, test: SequenceBatch) -> None:
        examples = impression_examples(train)
        fields = Fields(catalog, names)
        fields.fit(examples, train.interactions)
        parts = [part for part in fields.eval().parts if not part.is_bag]
        # Ids and hashed pairs name single items and users more than they describe them.
        is_read = [not isinstance(part, ItemId) and not _is_hashed(part) for part in parts]
        self.columns = np.flatnonzero(is_read)
        categories = (ItemCategory, RequestCategory, CrossedWithLast)
        self.categorical = [i for i, column in enumerate(self.columns) if isinstance(parts[column], categories)]
        self.matrix, self.test_matrix = (self._codes(fields, requests) for requests in (examples, test))

    def _codes(self, fields: Fields, requests: SequenceBatch) -> NDArray[np.int64]:
        codes = torch.cat([fields(batch).matrix() for batch in requests.split(BATCH)]).numpy()
        matrix: NDArray[np.int64] = codes[:, self.columns]
        return matrix

    def learn(self, targets: Floats, *, trees: int = 200) -> Floats:
        """Return the numbers of the test candidates, learned from those of the training candidates."""
        data = lightgbm.Dataset(self.matrix, targets, categorical_feature=self.categorical, free_raw_data=False)
        learned: Floats = np.asarray(lightgbm.train(TREES, data, num_boost_round=trees).predict(self.test_matrix))
        return learned


def _is_hashed(part: torch.nn.Module) -> bool:
    return isinstance(part, CrossedWithLast) and not part.is_exact


def main() -> None:
    arguments = parser(__doc__, customers=16_000, seed=0).parse_args()
    results = Results(arguments)
    with TemporaryDirectory() as folder:
        shop = generate_shop(arguments.seed, num_users=arguments.customers)
        shop.write(Path(folder) / "shop")
        data = load_dataset(Path(folder) / "shop")
    split = make_split(data, "impressions")
    truth = true_parts(shop.truth, data, split.test)
    labels = split.test.candidate_labels["click"].values > 0

    def add(name: str, scores: Floats) -> None:
        """Print the AUC of scores and append it to the results."""
        figure = auc(torch.from_numpy(scores), labels)
        print(f"| {name} | {figure:.4f} |", flush=True)
        results.add(name, {"auc": figure})

    print("| what is known | AUC |")
    print("| --- | --- |")
    total = np.sum(list(truth.values()), axis=0)
    add("the truth, slot unknown", total)
    for name, part in truth.items():
        add(f"the truth without: {name}", total - part)
    train_parts = true_parts(shop.truth, data, impression_examples(split.train))
    train_total = np.sum(list(train_parts.values()), axis=0)
    names = Fields(data.catalog).all_names
    counting = tuple(name for name in names if not is_comparing(name))
    add("counting fields", FieldTrees(data.catalog, counting, split.train, split.test).learn(train_total))
    trees = FieldTrees(data.catalog, names, split.train, split.test)
    add("all fields", trees.learn(train_total))
    for name, part in truth.items():
        add(f"all fields, and the true {name}", trees.learn(train_total - train_parts[name]) + part)


if __name__ == "__main__":
    main()
