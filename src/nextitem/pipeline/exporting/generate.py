"""Recommend items by an exported generator, with numpy and onnxruntime alone.

    python generate.py --history a,b,c -k 10

or in Python, from any folder:

    generator = Generator("path/of/the/export")
    generator.recommend([["a", "b"], ["c"]], k=10, exclude=[["d"], []])

A beam search descends the trie of all semantic IDs. It enters a node only if an item that the request may get lies
below it, so every item of a list exists, is allowed and occurs once. manifest.json says what this export contains.

Shapes: B requests, R beams of all requests, C children of a beam, N items, P positions (items in the order of their
semantic IDs), V nodes of the trie.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]
DTYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "I16": np.int16, "U8": np.uint8, "F64": np.float64}
GUIDE_FLOOR = 1e-3  # in a product, each item has at least this part of an equal share
MIN_WEIGHT = 1e-9  # in a mixture, the generator has at least this weight


class Generator:
    """A generator with its trie, opened from the folder of an export.

    Args:
        folder: the folder of the export; None: the folder of this file.
        threads: number of threads of onnxruntime.

    """

    def __init__(self, folder: str | Path | None = None, *, threads: int = 1) -> None:
        self.folder = Path(__file__).parent if folder is None else Path(folder)
        self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        self._threads = threads
        self.trie = Trie(self.folder / "trie.safetensors")
        self.items = read_safetensors(self.folder / "items.safetensors")[0]
        self.ids = _ids(self.items)
        self.numbers = {item: number for number, item in enumerate(self.ids, start=1)}
        kinds = {"depth-decoder": DepthDecoder, "tiger": Tiger}
        self.network: Any = kinds[self.manifest["kind"]](self)
        self.guide = self.session("guide.onnx") if self.manifest["guide"] else None

    def session(self, name: str) -> Any:
        """Return an onnxruntime session of a file of the export."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(str(self.folder / name), options, providers=["CPUExecutionProvider"])

    def recommend(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        users: Sequence[Any] | None = None,
        exclude: Sequence[Sequence[Any]] | None = None,
        allowed: Sequence[Sequence[Any] | None] | None = None,
        exclude_seen: bool = True,
    ) -> list[dict[str, Any]]:
        """Recommend k items for each history.

        Args:
            histories: item ids of each request, oldest first; unknown ids are skipped.
            k: maximum number of items to return.
            users: ids of the users, None for a visitor; read only if the model has a user token.
            exclude: item ids that each request must not get.
            allowed: item ids, of which each request may only get these; None: any.
            exclude_seen: whether the items of its history are excluded from a list.

        Returns:
            For each request {"items": [{"item_id", "score"}, ...], "fallback"}, best first. `fallback` is true if the
            history has no known item, and popularity answered.

        """
        rows = [self._numbers_of(history) for history in histories]
        excluded = [self._numbers_of(ids) for ids in exclude or [()] * len(rows)]
        if exclude_seen:
            excluded = [np.concatenate(pair) for pair in zip(excluded, rows, strict=True)]
        limits = [None if ids is None else self._numbers_of(ids) for ids in allowed or [None] * len(rows)]
        answers: list[tuple[Array, Array]] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(rows)
        is_full = np.array([len(row) > 0 for row in rows], dtype=bool)
        for number in np.flatnonzero(~is_full).tolist():
            answers[number] = self._popular(k, excluded[number], limits[number])
        full = np.flatnonzero(is_full).tolist()
        if full:
            batch = Batch(
                _padded([rows[number] for number in full]),
                np.array([0 if users is None else user_key(users[number]) for number in full]),
                [excluded[number] for number in full],
                [limits[number] for number in full],
            )
            for number, answer in zip(full, self._lists(batch, k), strict=True):
                answers[number] = answer
        return [
            {
                "items": [
                    {"item_id": self.ids[item - 1], "score": round(float(score), 6)}
                    for item, score in zip(*answer, strict=True)
                ],
                "fallback": not bool(has_history),
            }
            for answer, has_history in zip(answers, is_full, strict=True)
        ]

    def _numbers_of(self, ids: Sequence[Any]) -> Array:
        """Return the numbers of those ids that the export contains, int64."""
        is_text = bool(self.ids) and isinstance(self.ids[0], str)
        numbers = (self.numbers.get(str(item) if is_text else _as_int(item), 0) for item in ids)
        return np.array([number for number in numbers if number], dtype=np.int64)

    def _popular(self, k: int, excluded: Array, limit: Array | None) -> tuple[Array, Array]:
        """Return the k most popular items that a request may get, and their counts."""
        is_allowed = np.ones(len(self.ids) + 1, dtype=bool)
        if limit is not None:
            is_allowed = np.isin(np.arange(len(is_allowed)), limit)
        is_allowed[0], is_allowed[excluded] = False, False
        is_allowed[self.items["not_returned"]] = False
        items = np.flatnonzero(is_allowed)
        counts = self.items["popularity"][items]
        order = np.argsort(-counts, kind="stable")[:k]
        return items[order], counts[order]

    def _lists(self, batch: Batch, k: int) -> list[tuple[Array, Array]]:
        """Return items and scores of each request, all of which have a history."""
        rule = self.manifest["new_items"]
        if rule is None:
            return [self._with_unseen(*answer, batch, row, k) for row, answer in enumerate(self._search(batch, k))]
        new = np.flatnonzero(self.items["popularity"] == 0)[1:]  # without padding
        others = np.flatnonzero(self.items["popularity"] > 0)
        parts = [self._search(batch.among(others), k)]
        max_new = int(rule["share"] * k + 1e-9)
        parts.append(
            self._search(batch.among(new), max_new) if max_new else [(new[:0], np.zeros(0, np.float32))] * len(batch)
        )
        merged = []
        for old_list, new_list in zip(*parts, strict=True):
            count = max(0, k - len(new_list[0])) if rule["reserved"] else k
            items, scores = (np.concatenate([a[:count], b]) for a, b in zip(old_list, new_list, strict=True))
            order = np.lexsort((items, -scores))[:k]
            merged.append((items[order], scores[order]))
        return merged

    def _with_unseen(self, items: Array, scores: Array, batch: Batch, row: int, k: int) -> tuple[Array, Array]:
        """Append items without a training event to a short list, in order of their numbers, below its last score."""
        unseen = np.setdiff1d(self.items["unseen"], batch.excluded[row])
        limit = batch.limits[row]
        if limit is not None:
            unseen = np.intersect1d(unseen, limit)
        unseen = unseen[: k - len(items)]
        last = scores[-1] if len(scores) else np.float32(0)
        return np.concatenate([items, unseen]), np.concatenate([scores, np.full(len(unseen), last - 1, np.float32)])

    def _search(self, batch: Batch, k: int) -> list[tuple[Array, Array]]:
        """Return the k best items of each request and their scores, by a beam search down the trie."""
        trie, legal = self.trie, Legal(self.trie, batch)
        guide = None if self.guide is None else Guide(self, batch, legal)
        width = max(k, self.manifest["beam_width"])
        rows, nodes = np.arange(len(batch)), np.zeros(len(batch), np.int64)
        scores, state = np.zeros(len(batch), np.float32), self.network.start(batch)
        for level in range(trie.num_levels):
            children = trie.children(nodes)
            logits, totals, state = self.network.step(state, rows, nodes, children, level)
            child_scores = logits + (scores - np.where(np.isneginf(totals), np.float32(0), totals))[:, None]
            is_child = children >= 0
            is_child[is_child] &= legal.has_items(
                np.broadcast_to(rows[:, None], children.shape)[is_child], children[is_child]
            )
            beams, slots = np.nonzero(is_child & ~np.isneginf(child_scores))
            keys = child_scores[beams, slots]
            if guide is not None:
                keys = guide.mix(keys, rows[beams], guide.below(rows[beams], children[beams, slots], level + 1))
            best = _best_of_rows(rows[beams], keys, width)
            beams, slots = beams[best], slots[best]
            scores, nodes, rows = child_scores[beams, slots], children[beams, slots], rows[beams]
            state = self.network.select(state, beams)
        return self._complete(rows, nodes, scores, legal, guide, k)

    def _complete(
        self, rows: Array, leaves: Array, scores: Array, legal: Legal, guide: Guide | None, k: int
    ) -> list[tuple[Array, Array]]:
        """Return the k best items below the leaves that the beams have reached; equal scores: the smaller number."""
        starts, ends = self.trie.ranges(leaves)
        beams = np.repeat(np.arange(len(leaves)), ends - starts)
        positions = np.arange(len(beams)) + np.repeat(
            starts - (np.cumsum(ends - starts) - (ends - starts)), ends - starts
        )
        is_legal = legal.count(rows[beams], positions, positions + 1) > 0
        beams, positions = beams[is_legal], positions[is_legal]
        values, owners, items = scores[beams], rows[beams], self.trie.items[positions].astype(np.int64)
        if guide is not None:
            values = guide.mix(values, owners, guide.by_position[owners, positions])
        order = np.lexsort((items, -values, owners))
        owners, items, values = owners[order], items[order], values[order]
        bounds = np.searchsorted(owners, np.arange(legal.num_requests + 1))
        return [
            (items[low : min(low + k, high)], values[low : min(low + k, high)])
            for low, high in pairwise(bounds.tolist())
        ]


class Batch:
    """Requests with a history: item numbers [B, L], keys of users [B], and what each request may get."""

    def __init__(self, items: Array, users: Array, excluded: list[Array], limits: list[Array | None]) -> None:
        self.items, self.users, self.excluded, self.limits = items, users, excluded, limits

    def __len__(self) -> int:
        return len(self.items)

    def among(self, candidates: Array) -> Batch:
        """Return the requests with lists from these items alone."""
        limits = [candidates if limit is None else np.intersect1d(limit, candidates) for limit in self.limits]
        return Batch(self.items, self.users, self.excluded, list(limits))


class DepthDecoder:
    """A generator with a vector for each node: logits are products of a state with the vectors of the children."""

    def __init__(self, generator: Generator) -> None:
        self.vectors = read_safetensors(generator.folder / "nodes.safetensors")[0]["vectors"]
        self.trie, self.encode = generator.trie, generator.session("encode.onnx")
        self.deeper = [generator.session(f"level_{level}.onnx") for level in range(1, self.trie.num_levels)]

    def start(self, batch: Batch) -> Array:
        """Return the states [B, t, D] at the root."""
        states: Array = self.encode.run(None, {"items": batch.items})[0]
        return states

    def step(self, states: Array, rows: Array, nodes: Array, children: Array, level: int) -> tuple[Array, Array, Array]:
        """Return the logits of the children [R, C], the logs of their sums of exponentials [R], and the new states."""
        if level and len(nodes):
            states = self.deeper[level - 1].run(None, {"states": states, "vectors": self.vectors[nodes]})[0]
        vectors = self.vectors[np.maximum(children, 0)]
        logits = (vectors @ states[:, -1][:, :, None])[:, :, 0]
        starts, ends = self.trie.ranges(np.maximum(children, 0))
        logits = np.where((children >= 0) & (ends > starts), logits, -np.inf).astype(np.float32)
        return logits, log_sum_exp(logits), states

    def select(self, states: Array, beams: Array) -> Array:
        """Return the states of these beams."""
        return states[beams]


class Tiger:
    """A generator that decodes the codes of an item; a level is a softmax over its codes, those of no item included."""

    def __init__(self, generator: Generator) -> None:
        self.trie, sizes = generator.trie, generator.trie.codebook_sizes
        self.offsets = np.cumsum([0, *sizes])
        self.encode, self.decode = generator.session("encode.onnx"), generator.session("decode.onnx")
        self.has_users = "users" in [each.name for each in self.encode.get_inputs()]

    def start(self, batch: Batch) -> tuple[dict[str, Array], Array]:
        """Return the encoded histories, and the tokens of each beam so far: the first input."""
        feeds = {"items": batch.items, **({"users": batch.users} if self.has_users else {})}
        names = [each.name for each in self.encode.get_outputs()]
        encoded = dict(zip(names, self.encode.run(names, feeds), strict=True))
        return encoded, np.full((len(batch), 1), self.offsets[-1], np.int64)

    def step(
        self, state: tuple[dict[str, Array], Array], rows: Array, nodes: Array, children: Array, level: int
    ) -> tuple[Array, Array, tuple[dict[str, Array], Array]]:
        """Return the logits of the children [R, C], the logs of the sums over all codes [R], and the state."""
        encoded, tokens = state
        if level:
            codes = self.trie.codes[nodes].astype(np.int64)
            tokens = np.concatenate([tokens, codes[:, None] + self.offsets[level - 1]], axis=1)
        if not len(nodes):
            return np.zeros(children.shape, np.float32), np.zeros(0, np.float32), (encoded, tokens)
        logits = self.decode.run(None, {"tokens": tokens, "requests": rows, **encoded})[0]
        logits = logits[:, self.offsets[level] : self.offsets[level + 1]]
        codes = self.trie.codes[np.maximum(children, 0)].astype(np.int64)
        of_children = np.take_along_axis(logits, np.maximum(codes, 0), axis=1)
        return np.where(children >= 0, of_children, np.float32(-np.inf)), log_sum_exp(logits), (encoded, tokens)

    def select(self, state: tuple[dict[str, Array], Array], beams: Array) -> tuple[dict[str, Array], Array]:
        """Return the state of these beams; the encoded histories are shared."""
        return state[0], state[1][beams]


class Trie:
    """All semantic IDs as flat arrays; the format is described in the package's documentation of file formats."""

    def __init__(self, file: Path) -> None:
        tensors, metadata = read_safetensors(file)
        self.codebook_sizes: list[int] = json.loads(metadata["codebook_sizes"])
        self.level_starts: list[int] = json.loads(metadata["level_starts"])
        self.num_levels = len(self.codebook_sizes)
        self.items, self.positions, self.codes = (tensors[name] for name in ("items", "positions", "codes"))
        self.item_starts = tensors["item_starts"].astype(np.int64)
        self.first_child = tensors["first_child"].astype(np.int64)

    def children(self, nodes: Array) -> Array:
        """Return the children of inner nodes [R], padded with -1, [R, C]."""
        first = self.first_child[nodes]
        degrees = self.first_child[nodes + 1] - first
        numbers = np.arange(int(degrees.max()) if len(degrees) else 0)
        return np.where(numbers < degrees[:, None], first[:, None] + numbers, -1)

    def ranges(self, nodes: Array) -> tuple[Array, Array]:
        """Return the first position under each node, and the position after its last one."""
        return self.item_starts[nodes], self.item_starts[nodes + 1]


class Legal:
    """What the requests of a batch may get, as sorted keys: number of the request times P plus position."""

    def __init__(self, trie: Trie, batch: Batch) -> None:
        self._trie, self._size, self.num_requests = trie, len(trie.items), len(batch)
        self._is_limited = np.array([limit is not None for limit in batch.limits])
        self._allowed = self._keys([np.zeros(0, np.int64) if limit is None else limit for limit in batch.limits])
        excluded = self._keys(batch.excluded)
        is_counted = ~self._is_limited[excluded // max(1, self._size)] | np.isin(excluded, self._allowed)
        self._excluded = excluded[is_counted]

    def _keys(self, items: Sequence[Array]) -> Array:
        rows = np.repeat(np.arange(len(items)), [len(part) for part in items])
        positions = self._trie.positions[np.concatenate([*items, np.zeros(0, np.int64)])].astype(np.int64)
        return np.unique((rows * self._size + positions)[positions >= 0])

    def count(self, rows: Array, starts: Array, ends: Array) -> Array:
        """Return how many positions of start .. end - 1 each of the requests `rows` may get."""
        low, high = rows * self._size + starts, rows * self._size + ends
        of_list = np.searchsorted(self._allowed, high) - np.searchsorted(self._allowed, low)
        num_excluded = np.searchsorted(self._excluded, high) - np.searchsorted(self._excluded, low)
        counts: Array = np.where(self._is_limited[rows], of_list, ends - starts) - num_excluded
        return counts

    def has_items(self, rows: Array, nodes: Array) -> Array:
        """Return whether an item that the request may get lies under each node."""
        is_live: Array = self.count(rows, *self._trie.ranges(nodes)) > 0
        return is_live


class Guide:
    """Item probabilities of another model, which are mixed with those of the generator at every node of the trie."""

    def __init__(self, generator: Generator, batch: Batch, legal: Legal) -> None:
        self._trie, self._use, session = generator.trie, generator.manifest["guide"], generator.guide
        assert session is not None
        scores = session.run(["scores"], {"items": batch.items})[0]
        shares = self._probabilities(scores, generator.items["guide_unseen"])
        self._num_items = shares.shape[1] - 1
        positions = np.arange(len(self._trie.items))
        rows = np.repeat(np.arange(len(shares)), len(positions))
        flat = np.tile(positions, len(shares))
        is_legal = (legal.count(rows, flat, flat + 1) > 0).reshape(len(shares), -1)
        self.by_position = np.where(is_legal, shares[:, self._trie.items], np.float32(0))
        weight = np.where((self.by_position > 0).any(1), self._use["weight"], 0.0)
        self._weights = weight.astype(np.float32)

    def _probabilities(self, scores: Array, unseen: Array) -> Array:
        """Return the probability of every item, [B, N + 1], by the transform that was chosen in training."""
        values, temperature = scores.astype(np.float32).copy(), self._use["temperature"]
        is_softmax = self._use["transform"] == "softmax"
        values[:, 0] = values[:, unseen] = -np.inf if is_softmax else 0
        if is_softmax:
            values = np.exp((values - values.max(1, keepdims=True)) / temperature)
        else:
            values /= np.maximum(values.max(1, keepdims=True), np.finfo(np.float32).tiny)
            values = values ** (1 / temperature)
        totals = values.sum(1, keepdims=True)
        shares: Array = values / np.where(totals == 0, np.float32(1), totals)
        return shares

    def below(self, rows: Array, nodes: Array, depth: int) -> Array:
        """Return the largest probability below nodes of the given depth, for the requests `rows`."""
        first, end = self._trie.level_starts[depth], self._trie.level_starts[depth + 1] - 1
        starts, ends = self._trie.ranges(np.arange(first, end))
        padded = np.concatenate([self.by_position, np.zeros((len(self.by_position), 1), np.float32)], axis=1)
        largest = np.where(ends > starts, np.maximum.reduceat(padded, starts, axis=1), np.float32(0))
        values: Array = largest[rows, nodes - first]
        return values

    def mix(self, log_probs: Array, rows: Array, guide: Array) -> Array:
        """Return the log of the mixture, or of the weighted product, of both probabilities."""
        weight = self._weights[rows]
        with np.errstate(divide="ignore"):
            if self._use["combine"] == "mixture":
                own = log_probs + np.log(np.maximum(1 - weight, np.float32(MIN_WEIGHT)))
                mixed: Array = np.logaddexp(own, np.log(guide) + np.log(weight))
            else:
                floored = guide + np.float32(GUIDE_FLOOR / self._num_items)
                mixed = (1 - weight) * log_probs + weight * np.log(floored)
        return mixed


def read_safetensors(file: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the tensors of a safetensors file, mapped from the disk, and its metadata."""
    data = np.memmap(file, dtype=np.uint8, mode="r")
    size = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + size].tobytes())
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def log_sum_exp(values: Array) -> Array:
    """Return the log of the sum of the exponentials of each row, -inf for a row of -inf."""
    if not values.shape[1]:
        return np.full(len(values), -np.inf, np.float32)
    highest = values.max(1)
    safe = np.where(np.isneginf(highest), np.float32(0), highest)
    with np.errstate(divide="ignore"):
        total: Array = np.log(np.exp(values - safe[:, None]).sum(1)) + safe
    return total


def user_key(user: Any) -> int:
    """Return the 63-bit key of a user's id, a hash of its text; 0 for None, a visitor."""
    if user is None:
        return 0
    key = 0xCBF29CE484222325
    for byte in str(user).encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 1):
        key = (key ^ key >> 33) * factor % 2**64
    return key >> 1 or 1


def _best_of_rows(rows: Array, keys: Array, width: int) -> Array:
    """Return the indices of the `width` highest keys of each row, in order; equal keys: the first one."""
    order = np.lexsort((-keys, rows))  # stable
    rows = rows[order]
    place = np.arange(len(order)) - np.searchsorted(rows, rows)
    return order[place < width]


def _ids(items: dict[str, Array]) -> list[Any]:
    """Return the ids of items 1..N, integers or text."""
    if "ids" in items:
        numbers: list[Any] = items["ids"].tolist()
        return numbers
    text, ends = items["id_bytes"].tobytes(), items["id_ends"].tolist()
    return [text[low:high].decode() for low, high in zip([0, *ends[:-1]], ends, strict=True)]


def _as_int(value: Any) -> int | None:
    try:
        return int(str(value).strip())
    except ValueError:
        return None


def _padded(rows: Sequence[Array]) -> Array:
    """Return rows of numbers, padded with 0 on the right, [B, L] int64."""
    padded = np.zeros((len(rows), max(len(row) for row in rows)), np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def main() -> None:
    """Print the list of a history as JSON."""
    parser = argparse.ArgumentParser(description="Recommend items by an exported generator.")
    parser.add_argument("--history", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("--exclude", default="", help="item ids that are not recommended, separated by commas")
    parser.add_argument("-k", type=int, default=10, help="number of items")
    arguments = parser.parse_args()
    history, exclude = ([part for part in text.split(",") if part] for text in (arguments.history, arguments.exclude))
    print(json.dumps(Generator().recommend([history], arguments.k, exclude=[exclude])[0], indent=2))


if __name__ == "__main__":
    main()
