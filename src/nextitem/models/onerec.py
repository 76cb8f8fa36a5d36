"""OneRec: generates the items of a session as one list, each item code by code after those before it.

Deng et al., OneRec, arXiv 2502.18965. One model replaces retrieval and ranking: an encoder reads the history, and a
decoder with a mixture of experts generates the next m items of the user, so that an item of the list is chosen for what
comes before it. It is trained on all codes of all items of a session.

    h_1 .. h_n = causal transformer over the events
    z_j        = decoder(slot j, items 1 .. j - 1 of the list, h_1 .. h_n)     nn/attention/session_decoder.py
    item j     = a descent of the trie of codes from z_j                       as in depth_decoder.py

Notable
- It stands on the depth decoder, which is better here than codes as tokens: an event is one token, every node of the
  trie has a vector, and only legal codes compete. Its first slot is that of the depth decoder: on amazon14-beauty it
  is worse if it passes the decoder (`decodes_first`, as in the paper).
- A causal encoder is read once for all lists of a user. The paper's reads each history in both directions.
- A list begins at every event, so a later slot learns what the first slot of a later list learns, too. `session_share`
  is the part of the lists of which later slots are learned; 1 in the paper, whose lists do not overlap.
- The first slot learns the items after its own, too, with falling weights; the paper learns its own alone.
- A list has up to `items_per_list` items; in longer answers, the best items of the first slot follow that are not in
  the list. `generates = "items"` answers with the k best items of the first slot instead.
- Preference alignment is not part of the model: see nextitem.alignment.

Shapes: B requests or histories, L events, P lists of a history, S lists of a batch, m slots, W beams, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.data.examples.user_sessions import SessionsConfig, UserSessionBatch, UserSessions
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guide import Guide
from nextitem.decoding.node_vectors import Targets
from nextitem.models.depth_decoder import DepthDecoder, DepthDecoderConfig
from nextitem.nn.attention.incremental import extend_history_state
from nextitem.nn.attention.session_decoder import EncodedHistory, SessionDecoder
from nextitem.nn.experts import ExpertsConfig, take_balance_losses
from nextitem.nn.initialisation import truncated_normal_


class OneRecConfig(DepthDecoderConfig):
    """Settings of OneRec."""

    items_per_list: int = Field(5, ge=1)
    """Number of items that are generated as a list (m), in training and in answers."""
    generates: Literal["list", "items"] = "list"
    """Answer: the likeliest list, followed by the best further items; or the best items one by one."""
    session_share: float = Field(0.25, ge=0, le=1)
    """Share of the lists whose slots after the first are learned, sampled for each batch; 0: items one by one."""
    sessions: SessionsConfig = SessionsConfig()
    """How sessions are cut from the log, and which of them are learned."""
    decodes_first: bool = False
    """Whether the decoder generates the first item of a list, too; otherwise it comes from the encoder's last state."""
    decoder_layers: int = Field(1, ge=1)
    """Number of layers of the decoder."""
    feed_width: int = Field(128, ge=1)
    """Number of hidden units of the decoder's feed-forward block, or of each expert."""
    experts: ExpertsConfig | None = ExpertsConfig()
    """Mixture of experts in place of that block; none: a dense block."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        is_listwise = self.generates == "list" or self.session_share > 0
        reason = "neither answers nor the loss have lists"
        idle = {**super().idle_fields(), **configs.idle_unless(is_listwise, reason, "items_per_list")}
        is_trained = self.decodes_first or self.session_share > 0
        of_decoder = ("decoder_layers", "feed_width", "experts")
        return {**idle, **configs.idle_unless(is_trained, "the decoder learns nothing", *of_decoder)}


class OneRec(DepthDecoder):
    """A recommender that generates lists of items by their paths down a trie."""

    Config = OneRecConfig
    config: OneRecConfig

    def __init__(self, config: OneRecConfig, catalog: Catalog) -> None:
        super().__init__(config.model_copy(update={"guide": None}), catalog)
        self.config = config
        self.decoder = SessionDecoder(
            config.width,
            slots=config.items_per_list,
            layers=config.decoder_layers,
            heads=config.heads,
            hidden=config.feed_width,
            experts=config.experts,
            dropout=config.dropout,
            decodes_first=config.decodes_first,
        )
        truncated_normal_(self.decoder)
        self.add_guidance(config.guide)

    def examples(self, train: Dataset) -> UserSessions:  # type: ignore[override]
        """Return the users' histories with the lists that follow their events."""
        return UserSessions(
            train.interactions,
            max_length=self.config.max_history_length,
            items_per_list=self.config.items_per_list,
            config=self.config.sessions,
        )

    def training_loss(self, batch: UserSessionBatch) -> LossTerms:  # type: ignore[override]
        """Return the cross-entropy of the nodes of the items of the lists, summed over slots, a mean over lists."""
        items = self._visible_items(generator := torch.Generator().manual_seed(batch.seed))
        events_TD = self.encoder(batch.items, lambda ids: self._embed(ids, items))
        events_BLD = Jagged(events_TD, batch.items.offsets).to_padded()
        first_SD = self._slots(events_BLD, batch, items, num_slots=1)[0]
        hidden, targets = [first_SD], [batch.next_items(self.config.target_weights)]
        if self.config.session_share and self.config.items_per_list > 1:
            part = batch.sample_lists(self.config.session_share, generator)
            later_RD, later_items = self._slots(events_BLD, part, items, num_slots=self.config.items_per_list)
            rows = torch.arange(len(later_RD), device=later_RD.device)
            hidden.append(later_RD)
            targets.append((rows + len(first_SD), later_items, torch.full_like(later_RD[:, 0], 1 / batch.loss_count)))
        joined = tuple(torch.cat(column) for column in zip(*targets, strict=True))
        terms = self._loss(torch.cat(hidden), cast(Targets, joined), items, generator, num_next=len(first_SD))
        balance = take_balance_losses(self.decoder)
        if balance is None:
            return terms
        return LossTerms(terms.total + balance, {**terms.named, "balance": balance.detach()})

    def _slots(
        self, events_BLD: Tensor, batch: UserSessionBatch, items: Tensor, *, num_slots: int
    ) -> tuple[Tensor, Tensor]:
        """Return the states of slots and their items, [R, D] and [R]: of all first slots, or of all later ones.

        Args:
            events_BLD: outputs of the encoder.
            batch: the lists.
            items: the items' own vectors, [N + 1, D].
            num_slots: 1: the first slot of each list; otherwise those after it, up to this number.

        """
        lists_Sm = batch.lists.to_padded(num_slots) if num_slots > 1 else batch.lists.to_padded()[:, :1]
        starts_BP = batch.starts.to_padded()
        lists_BPm = lists_Sm.new_zeros((*starts_BP.shape, num_slots))
        lists_BPm[starts_BP > 0] = lists_Sm
        former = self._embed(lists_BPm[:, :, :-1].flatten(1), items).view(
            *starts_BP.shape, num_slots - 1, self.config.width
        )
        is_real = lists_BPm > 0
        hidden_BPmD = self.decoder(self.decoder.read(events_BLD, starts_BP.clamp(min=1)), former, is_real)
        if num_slots > 1:
            hidden_BPmD, lists_BPm, is_real = hidden_BPmD[:, :, 1:], lists_BPm[:, :, 1:], is_real[:, :, 1:]
        return hidden_BPmD[is_real], lists_BPm[is_real]

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state before the first item of a list, from the history or from its cached state."""
        if batch.state is not None:
            state = self.encode_history(batch, batch.state)
            events_BLD, lengths_B = state.cache["outputs"][:, :, 0, 0], state.lengths - state.starts
        else:
            recent = self.encoder.window.recent_events(batch.items)
            events_BLD = Jagged(self.encoder(recent, self._embed), recent.offsets).to_padded()
            lengths_B = recent.lengths
        history = self.decoder.read(events_BLD, lengths_B.clamp(min=1)[:, None])
        shared = {f"keys_values_{layer}": part for layer, part in enumerate(history.keys_values)}
        shared |= {"lengths": history.lengths, "states": history.states}
        return self._begin_slot(shared, history.lengths.new_empty((batch.num_requests, 1, 0)))

    def _begin_slot(self, shared: dict[str, Tensor], items_BWj: Tensor) -> GeneratorState:
        """Return the state at the root, before the item that follows `items_BWj` in the list of each beam."""
        B, W, j = items_BWj.shape
        keys_values = tuple(shared[f"keys_values_{layer}"] for layer in range(self.config.decoder_layers))
        history = EncodedHistory(keys_values, shared["lengths"].expand(B, W), shared["states"].expand(B, W, -1))
        former = self._embed(items_BWj.flatten(1)).view(B, W, j, self.config.width)
        hidden = self.deeper.start(self.decoder(history, former)[:, :, -1].flatten(0, 1))
        root = torch.zeros((B, W), dtype=torch.int64, device=items_BWj.device)
        return GeneratorState(
            shared, {"hidden": hidden.view(B, W, *hidden.shape[1:]), "node": root, "items": items_BWj}
        )

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        """Return the logits of the children `nodes [B, W, D]`, and the state after `codes [B, W]`.

        Children of the root after a code are those of the next slot: the codes have completed an item of each list. Of
        items that share a leaf, the decoder reads the first.
        """
        if codes is not None and self.trie.depth_of(nodes) == 1:
            leaves = self.trie.advance(state.beams["node"], codes).clamp(min=0)
            items = torch.cat([state.beams["items"], self.tree.item_of_leaf[leaves][..., None]], dim=2)
            state, codes = self._begin_slot(dict(state.shared), items), None
        return super().score_children(state, codes, nodes)

    @torch.no_grad()
    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Return the state after all events (roles.Incremental): keys and values of each block, and its outputs."""
        return extend_history_state(
            batch,
            state,
            lambda part, former: self.encoder.read(part, former, self._embed, stores_outputs=True),
            window=self.encoder.window,
            version=self.weights_fingerprint(),
            empty=self.items.weight.new_zeros(self.config.width),
            is_extensible=self.encoder.counts_from_first,
        )

    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the likeliest list of each request under this guide, followed by the best further items."""
        length = min(k, self.config.items_per_list)
        if self.config.generates == "items" or length == 1:
            return super().search(batch, k, guide=guide)
        trie = self.trie if self.config.content_at_leaves else self.tree.seen_trie
        options = {"beam_width": self.config.beam_width, **self.steering(guide)}
        answer = beam_search(self, batch, trie, k=length, items_per_list=length, **options)
        counts = (answer.item_ids > 0).sum(1)
        num_further = k - int(counts.min())
        if not num_further:
            return answer
        listed = Jagged.from_padded(answer.item_ids, counts)
        excluded = listed if batch.excluded is None else batch.excluded.append(listed)
        further = super().search(replace(batch, excluded=excluded), num_further, guide=guide)
        items, scores = (
            torch.cat(parts, dim=1) for parts in ((answer.item_ids, further.item_ids), (answer.scores, further.scores))
        )
        to_front = (items == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
        return replace(answer, item_ids=items.gather(1, to_front), scores=scores.gather(1, to_front))
