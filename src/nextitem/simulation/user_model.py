"""A model of the users of a log: how probable a click on a shown item is, and when a user comes back.

The probability of a click is that of a look at the slot times a logistic function of what is known of user and item:
the popularity of the item, its likeness to what the user clicked lately and last, and how many items of its group are
above it in the list. Likeness is the cosine of item vectors, which are a singular value decomposition of who clicked
what. The time until the next visit is exponential; its mean depends on whether anything was clicked. Vectors are of the
first part of the log, weights of the second, so that they do not trust what vectors remember; the third part judges.

Without impressions, it is not known what was shown. Then each click is set beside random items, which tells what users
prefer, but not how often they click: `click_rate` has to be assumed.

Shapes: T shown items, N items, V vector width, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.shop.list_truth import same_above
from nextitem.data.shop.truth import EXAMINATION, Bools, Floats, Ints
from nextitem.simulation.answers import DAY

WIDTH = 32  # of item vectors
RECENT = 0.3  # weight of the newest click in the recent taste
VECTOR_SHARE, TRAIN_SHARE = 0.6, 0.8  # ends of the parts of the log for vectors and for weights
NUM_RANDOM_ITEMS = 20  # beside each click, without impressions
MAX_SHOWN = 400_000  # shown items that are read, evenly spaced
MAX_SLOTS = 50
MIN_CLICKS = 20
NUM_STATES, NUM_POPULAR = 500, 100  # users and popular items whose mean click probability is `click_rate`
FEATURES = ("bias", "popularity", "recent", "last", "same_above")


@dataclass(frozen=True, eq=False)
class UserModel:
    """A fitted model of users.

    Attributes:
        vectors: item vectors of length 1, or 0 for items that nobody clicked, [N, V].
        popularity: standardised log number of clicks of each item, [N].
        weights: weight of each of FEATURES in the logit of a click.
        examination: probability of a look at each slot, relative to the first, [K].
        groups: group of each item, [N]; users tire of items of one group in a list.
        purchase_share: share of clicks that become purchases.
        gaps: mean number of days until the next visit after one without and one with a click.
        figures: how well the model fits the last part of the log.

    """

    vectors: Floats
    popularity: Floats
    weights: Floats
    examination: tuple[float, ...]
    groups: Ints
    purchase_share: float
    gaps: tuple[float, float]
    figures: dict[str, float]

    @property
    def fatigue(self) -> float:
        """Appeal that an item loses for each item of its group above it; not below 0."""
        return max(0.0, -float(self.weights[FEATURES.index("same_above")]))

    def appeal(self, recent: Floats, last: Ints) -> Floats:
        """Return the logit of a click on every item alone, [B, N]; `recent [B, V]` tastes, `last [B]` items (-1)."""
        likeness = _unit(recent) @ self.vectors.T
        last_vectors = np.where(last[:, None] >= 0, self.vectors[last], 0.0)
        weights = self.weights
        result: Floats = (
            weights[0]
            + weights[1] * self.popularity
            + weights[2] * likeness
            + weights[3] * last_vectors @ self.vectors.T
        )
        return result

    def after_clicks(self, recent: Floats, items: Ints) -> Floats:
        """Return the recent tastes [B, V] of users after clicks on items [B]: nearer to what was clicked."""
        result: Floats = (1 - RECENT) * recent + RECENT * self.vectors[items]
        return result


@dataclass(frozen=True, eq=False)
class ShownItems:
    """Shown items with their features, in the order of time.

    Attributes:
        features: FEATURES of each, [T, F].
        slots: slot of each, from 0, [T].
        clicks: whether each was clicked, [T].
        purchases: whether each was bought, [T].
        times: time of each in milliseconds, [T], ascending.

    """

    features: Floats
    slots: Ints
    clicks: Bools
    purchases: Bools
    times: Ints


def fit_user_model(dataset: Dataset, *, click_rate: float = 0.1, seed: int = 0) -> UserModel:
    """Fit a model of the users of a data set.

    Args:
        dataset: the data set; its impressions are read, or its interactions if it has none with times and labels.
        click_rate: without impressions, the mean probability of a click on a popular item that is looked at.
        seed: seed of the random items that stand beside clicks without impressions.

    Raises:
        UserError: the log has no times, or too few clicks.

    """
    log = dataset.interactions.with_items()
    if log.timestamps is None:
        raise UserError(f"{dataset.name}: a world cannot be fitted to a log without times")
    if len(log) < MIN_CLICKS:
        raise UserError(f"{dataset.name}: {len(log)} events are too few to fit a world; there must be {MIN_CLICKS}")
    first_cut, second_cut = np.quantile(log.timestamps, [VECTOR_SHARE, TRAIN_SHARE])
    owners, items = log.user_ids.astype(np.int64), log.item_ids.astype(np.int64) - 1
    is_first = log.timestamps < first_cut
    vectors, popularity = _item_vectors(log.user_ids[is_first], items[is_first], log.num_users, log.num_items)
    groups = item_groups(dataset)
    recent, last = states_after(owners, items, vectors)
    has_impressions = _has_clicks(dataset)
    if has_impressions:
        shown_items = _shown_items(dataset, vectors, popularity, groups, recent, last)
    else:
        shown_items = _random_items(owners, items, log.timestamps, vectors, popularity, recent, last, seed)
    first, cut = (int(place) for place in np.searchsorted(shown_items.times, [first_cut, second_cut]))
    if not shown_items.clicks[first:cut].any():
        raise UserError(
            f"{dataset.name}: no click between the first 60% and 80% of the log, to which a world is fitted"
        )
    weights, examination = _fitted(shown_items, slice(first, cut), has_slots=has_impressions)
    figures = _click_figures(shown_items, cut, weights, examination)
    if not has_impressions:
        ends = np.flatnonzero(np.append(log.user_ids[1:] != log.user_ids[:-1], True))
        ends = ends[np.linspace(0, len(ends) - 1, min(len(ends), NUM_STATES)).astype(np.int64)]
        top = np.argsort(-popularity, kind="stable")[:NUM_POPULAR]
        users = np.repeat(ends, len(top))
        features = _features(
            np.tile(top, len(ends)), recent[users], last[users], np.zeros(len(users)), vectors, popularity
        )
        weights[0] = _level(features[:, 1:] @ weights[1:], click_rate)
    gaps, gap_figures = _gaps(dataset, shown_only=has_impressions)
    clicked = shown_items.clicks.sum()
    return UserModel(
        vectors,
        popularity,
        weights,
        examination,
        groups,
        float(shown_items.purchases.sum() / clicked) if clicked else 0.0,
        gaps,
        {**figures, **gap_figures, "has_impressions": float(has_impressions)},
    )


def _level(logits: Floats, rate: float) -> float:
    """Return what must be added to logits so that the mean of their probabilities is a rate."""
    low, high = -40.0 - logits.max(), 40.0 - logits.min()
    for _ in range(80):
        middle = (low + high) / 2
        is_high = (1 / (1 + np.exp(-(logits + middle)))).mean() > rate
        low, high = (low, middle) if is_high else (middle, high)
    return float(low)


def item_groups(dataset: Dataset) -> Ints:
    """Return the group of each item, [N]: its value of the first categorical feature; without one, none share one."""
    catalog = dataset.catalog
    names = [name for name, kind in catalog.features.items() if kind == "categorical"]
    named = [name for name in names if "category" in name] or names
    if not named:
        return np.arange(catalog.num_items)
    values = catalog.table[named[0]].cast(str)
    ranks: Ints = values.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    return ranks


def _has_clicks(dataset: Dataset) -> bool:
    """Return whether the data set has impressions with users, times and enough clicks."""
    impressions = dataset.impressions
    if impressions is None or impressions.timestamps is None or not impressions.labels:
        return False
    clicks = impressions.columns[impressions.labels[0]].fill_null(0).to_numpy() > 0
    return bool(clicks.sum() >= MIN_CLICKS and (~clicks).any())


def _item_vectors(users: NDArray[np.integer], items: Ints, num_users: int, num_items: int) -> tuple[Floats, Floats]:
    """Return unit vectors of the items, [N, V], and their standardised log popularity, [N]."""
    counts = np.bincount(items, minlength=num_items)
    table = sp.csr_matrix((np.ones(len(items)), (users - 1, items)), shape=(num_users, num_items))
    table.data[:] = 1.0
    weights = sp.diags(1 / np.sqrt(np.maximum(np.asarray(table.sum(axis=1)).ravel(), 1)))
    scaled = weights @ table @ sp.diags(1 / np.sqrt(np.maximum(counts, 1)))
    width = min(WIDTH, min(scaled.shape) - 1)
    if width < 1:
        vectors = np.zeros((num_items, 1))
    else:
        start = np.ones(min(scaled.shape)) / np.sqrt(min(scaled.shape))
        _, values, right = svds(scaled, k=width, v0=start)
        vectors = _unit(right.T * values)
    logs = np.log1p(counts)
    spread = logs.std()
    return vectors, (logs - logs.mean()) / spread if spread else np.zeros(num_items)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)
    return result


def states_after(users: Ints, items: Ints, vectors: Floats) -> tuple[Floats, Ints]:
    """Return the recent taste [T + 1, V] and the last item [T + 1] of users after each event of a log, sorted by user.

    The entry after the last event is the state of a user without events.
    """
    count = len(items)
    recent, last = np.zeros((count + 1, vectors.shape[1])), np.full(count + 1, -1)
    last[:count] = items
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    place = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    order = np.argsort(place, kind="stable")  # all first events, then all second ones, ...
    bounds = np.searchsorted(place[order], np.arange(int(place.max(initial=-1)) + 2))
    for step in range(len(bounds) - 1):
        rows = order[bounds[step] : bounds[step + 1]]
        before = recent[rows - 1] if step else vectors[items[rows]]
        recent[rows] = (1 - RECENT) * before + RECENT * vectors[items[rows]]
    return recent, last


def _features(items: Ints, recent: Floats, last: Ints, above: Floats, vectors: Floats, popularity: Floats) -> Floats:
    """Return FEATURES of shown items, [T, F], given the states of their users."""
    own = vectors[items]
    last_vectors = np.where(last[:, None] >= 0, vectors[last], 0.0)
    return np.stack(
        [
            np.ones(len(items)),
            popularity[items],
            (_unit(recent) * own).sum(axis=1),
            (last_vectors * own).sum(axis=1),
            above,
        ],
        axis=1,
    )


def _shown_items(
    dataset: Dataset, vectors: Floats, popularity: Floats, groups: Ints, recent: Floats, last: Ints
) -> ShownItems:
    """Return the impressions of a data set with the state that each user was in before them."""
    impressions, log = dataset.impressions, dataset.interactions.with_items()
    assert impressions is not None
    assert impressions.timestamps is not None
    assert log.timestamps is not None
    columns, requests = impressions.columns, impressions.request_ids
    count = len(requests)
    slots = np.zeros(count, np.int64)
    if "slot" in columns.columns:
        slots = columns["slot"].cast(int).fill_null(1).to_numpy().astype(np.int64) - 1
    slots = np.clip(slots, 0, MAX_SLOTS - 1)
    order = np.lexsort((slots, requests))
    above = np.zeros(count)
    above[order] = _above_in_lists(requests[order], groups[impressions.item_ids[order] - 1])
    # A user's events before the impression: users and times as one ascending key.
    span = int(max(log.timestamps.max(), impressions.timestamps.max())) + 2
    keys = log.user_ids.astype(np.int64) * span + np.maximum(log.timestamps, 0)
    request_keys = impressions.user_ids.astype(np.int64) * span + np.maximum(impressions.timestamps, 0)
    places = np.searchsorted(keys, request_keys, side="left") - 1
    is_own = (places >= 0) & (log.user_ids[np.maximum(places, 0)] == impressions.user_ids)
    places = np.where(is_own, places, len(log))
    features = _features(
        impressions.item_ids.astype(np.int64) - 1, recent[places], last[places], above, vectors, popularity
    )
    labels = [columns[name].fill_null(0).to_numpy() > 0 for name in impressions.labels[:2]]
    rows = np.argsort(impressions.timestamps, kind="stable")
    if count > MAX_SHOWN:
        rows = rows[np.linspace(0, count - 1, MAX_SHOWN).astype(np.int64)]
    purchases = labels[1] & labels[0] if len(labels) > 1 else np.zeros(count, np.bool_)
    return ShownItems(features[rows], slots[rows], labels[0][rows], purchases[rows], impressions.timestamps[rows])


def _above_in_lists(requests: Ints, groups: Ints) -> Floats:
    """Return how many items of the same group are above each shown item, [T]; lists are sorted by request and slot."""
    starts = np.flatnonzero(np.append(True, requests[1:] != requests[:-1]))
    lengths = np.diff(np.append(starts, len(requests)))
    width = min(int(lengths.max(initial=1)), MAX_SLOTS)
    place = np.arange(len(requests)) - np.repeat(starts, lengths)
    table = np.full((len(starts), width), -1)
    owner = np.repeat(np.arange(len(starts)), lengths)
    is_inside = place < width
    table[owner[is_inside], place[is_inside]] = groups[is_inside]
    counts = same_above(table, is_item=table >= 0)
    result = np.zeros(len(requests))
    result[is_inside] = counts[owner[is_inside], place[is_inside]]
    return result


def _random_items(
    users: Ints, items: Ints, times: Ints, vectors: Floats, popularity: Floats, recent: Floats, last: Ints, seed: int
) -> ShownItems:
    """Return clicks beside random items, with the state that each user was in before the click."""
    rng, count = np.random.default_rng(seed), len(items)
    rows = np.argsort(times, kind="stable")
    limit = max(1, MAX_SHOWN // (NUM_RANDOM_ITEMS + 1))
    if count > limit:
        rows = rows[np.linspace(0, count - 1, limit).astype(np.int64)]
    before = np.where((rows > 0) & (users[rows - 1] == users[rows]), rows - 1, count)
    others = rng.integers(len(vectors), size=(len(rows), NUM_RANDOM_ITEMS))
    candidates = np.concatenate([items[rows, None], others], axis=1)
    clicks = candidates == items[rows, None]
    before = np.repeat(before, candidates.shape[1])
    features = _features(
        candidates.ravel(), recent[before], last[before], np.zeros(candidates.size), vectors, popularity
    )
    zeros = np.zeros(candidates.size, np.bool_)
    slots, when = np.zeros(candidates.size, np.int64), np.repeat(times[rows], candidates.shape[1])
    return ShownItems(features, slots, clicks.ravel(), zeros, when)


def _fitted(shown_items: ShownItems, part: slice, *, has_slots: bool) -> tuple[Floats, tuple[float, ...]]:
    """Return the weights, [F], and the examination of the slots, of the largest likelihood of a part of the items."""
    features = torch.from_numpy(shown_items.features[part])
    clicks, slots = torch.from_numpy(shown_items.clicks[part]).double(), torch.from_numpy(shown_items.slots[part])
    num_slots = int(shown_items.slots.max(initial=0)) + 1
    rate = float(clicks.mean().clamp(1e-4, 1 - 1e-4))
    weights = torch.zeros(len(FEATURES), dtype=torch.float64)
    weights[0] = np.log(rate / (1 - rate))
    looks = torch.full((num_slots,), 1.0, dtype=torch.float64)
    parameters = [weights.requires_grad_(), looks.requires_grad_()] if num_slots > 1 else [weights.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        chance = torch.sigmoid(features @ weights) * _examination(looks)[slots]
        chance = chance.clamp(1e-9, 1 - 1e-9)
        value = -(clicks * chance.log() + (1 - clicks) * (1 - chance).log()).mean() + 1e-5 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    if not has_slots:
        return weights.detach().numpy(), tuple(EXAMINATION.tolist())
    return weights.detach().numpy(), tuple(_examination(looks).detach().tolist())


def _examination(looks: torch.Tensor) -> torch.Tensor:
    """Return probabilities of a look, 1 for the first slot."""
    return torch.cat([torch.ones(1, dtype=looks.dtype), torch.sigmoid(looks[1:])])


def _click_figures(
    shown_items: ShownItems, cut: int, weights: Floats, examination: tuple[float, ...]
) -> dict[str, float]:
    """Return log loss and calibration on the last part of the shown items, beside a constant for each slot."""
    later = slice(cut, None)
    slots = np.minimum(shown_items.slots, len(examination) - 1)
    chance = np.array(examination)[slots] / (1 + np.exp(-(shown_items.features @ weights)))
    totals = np.bincount(slots[:cut], weights=shown_items.clicks[:cut], minlength=len(examination))
    rates: Floats = np.asarray(
        totals / np.maximum(np.bincount(slots[:cut], minlength=len(examination)), 1), dtype=np.float64
    )
    clicks = shown_items.clicks[later]
    if not len(clicks):
        return {}
    order = np.array_split(np.argsort(chance[later], kind="stable"), min(10, len(clicks)))
    errors = [abs(chance[later][part].mean() - clicks[part].mean()) * len(part) for part in order]
    return {
        "held_out": float(len(clicks)),
        "clicks": float(clicks.sum()),
        "log_loss": _log_loss(chance[later], clicks),
        "log_loss_of_rates": _log_loss(rates[slots[later]], clicks),
        "mean_prediction": float(chance[later].mean()),
        "click_share": float(clicks.mean()),
        "calibration_error": float(sum(errors) / len(clicks)),
    }


def _log_loss(chance: Floats, clicks: Bools) -> float:
    clipped = np.clip(chance, 1e-7, 1 - 1e-7)
    return float(-np.where(clicks, np.log(clipped), np.log(1 - clipped)).mean())


def _gaps(dataset: Dataset, *, shown_only: bool) -> tuple[tuple[float, float], dict[str, float]]:
    """Return the mean days until the next visit after a poor and after a good visit, and how well that predicts.

    A visit is a day on which a user has events or impressions; it is good if something was clicked, or, if all visits
    have clicks, if there were more events than on half of the days. The time after the last visit counts as time
    without a return (exponential times with censoring).
    """
    log = dataset.interactions
    assert log.timestamps is not None
    users, times, weight = [log.user_ids], [log.timestamps], [np.ones(len(log))]
    if shown_only and dataset.impressions is not None and dataset.impressions.timestamps is not None:
        users.append(dataset.impressions.user_ids)
        times.append(dataset.impressions.timestamps)
        weight.append(np.zeros(len(dataset.impressions.user_ids)))
    owner, when = np.concatenate(users).astype(np.int64), np.concatenate(times) // (1000 * DAY)
    first = when.min()
    span = int(when.max() - first) + 1
    keys, place = np.unique(owner * span + (when - first), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate(weight), minlength=len(keys))
    user, day = np.divmod(keys, span)
    is_last = np.append(user[1:] != user[:-1], True)
    gaps = np.where(is_last, span - day, np.append(day[1:], 0) - day).astype(np.float64)
    is_good = counts > 0 if (counts == 0).mean() > 0.01 else counts > np.median(counts)
    is_early = day < TRAIN_SHARE * span
    means = []
    overall = gaps[is_early].sum() / max(1, (~is_last[is_early]).sum())
    for good in (False, True):
        part = is_early & (is_good == good)
        returns = (~is_last[part]).sum()
        means.append(float(gaps[part].sum() / returns) if returns >= MIN_CLICKS else float(overall))
    predicted, late = np.where(is_good, means[1], means[0]), ~is_early & ~is_last
    figures = {"returns": float(late.sum())}
    if late.any():
        figures |= {
            "gap_log_loss": float((np.log(predicted[late]) + gaps[late] / predicted[late]).mean()),
            "gap_log_loss_of_mean": float((np.log(overall) + gaps[late] / overall).mean()),
        }
    return (max(means[0], 1 / 24), max(means[1], 1 / 24)), figures
