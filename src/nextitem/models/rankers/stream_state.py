"""State of token streams: keys and values that were read, and which of them a later request of the user can reuse.

A token is recognised by a hash of its item, time and actions. From the first one on that differs from what was read,
tokens are read anew: an event that arrives late, or a label that was corrected, never leads to a wrong answer.

Shapes: B requests, each with its own stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged
from nextitem.nn.attention.stream import PastTokens
from nextitem.nn.ranking.user_streams import UserStreams


def unread_tokens(
    streams: UserStreams, state: HistoryState | None, version: str, *, factor: int = 1
) -> tuple[Tensor, PastTokens | None]:
    """Return the places of the tokens that must be read, and the cached ones before them.

    Args:
        streams: the streams of all requests.
        state: state of earlier requests; None: nothing was read.
        version: fingerprint of the weights; StaleStateError if the state has another one.
        factor: number of cached tokens for each token of the streams.

    """
    rows = streams.items.row_ids()
    places = torch.arange(len(rows), device=rows.device)
    if state is None or not state.cache:
        return places, None
    state.check_version(version)
    num_reusable = _reusable(streams, state)
    new_places = places[places - streams.items.offsets[rows] >= num_reusable[rows]]
    read_rows = torch.arange(len(num_reusable), device=rows.device).repeat_interleave(num_reusable)
    owners = [part.repeat_interleave(factor) for part in (read_rows, rows[new_places])]
    cache = Jagged.from_padded(state.cache["keys_values"], num_reusable * factor).values
    return new_places, PastTokens(torch.cat(owners).argsort(stable=True), cache)


def state_after(streams: UserStreams, cache: Tensor, lengths: Tensor, version: str, *, factor: int = 1) -> HistoryState:
    """Return the state with the keys and values `cache` of all tokens, after histories of `lengths [B]` events."""
    stored = {
        "keys_values": Jagged(cache, streams.items.offsets * factor).to_padded(),
        "digests": streams.items.with_values(streams.digests()[:, None]).to_padded(),  # [B, tokens, 1]
        "num_tokens": streams.items.lengths,
    }
    if streams.num_static is not None:
        stored["num_static"] = streams.num_static
    return HistoryState(lengths, None, stored, streams.starts, version)


def _reusable(streams: UserStreams, state: HistoryState) -> Tensor:
    """Return how many first tokens of each stream were read before, [B]."""
    digests, stored = streams.items.with_values(streams.digests()), state.cache["digests"][:, :, 0]
    width = min(int(digests.lengths.max()), stored.shape[1])
    places = torch.arange(width, device=digests.values.device)
    is_equal = digests.to_padded()[:, :width] == stored[:, :width]
    is_equal &= places < torch.minimum(digests.lengths, state.cache["num_tokens"])[:, None]
    counts = is_equal.long().cumprod(1).sum(1)
    has_moved = state.starts != streams.starts  # then a token before the first one was read, too
    if streams.num_static is not None:  # each static token sees all of them: they are reused together or not at all
        has_moved |= (state.cache["num_static"] != streams.num_static) | (counts < streams.num_static)
    return counts.masked_fill(has_moved, 0)
