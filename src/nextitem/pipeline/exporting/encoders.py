"""The exported encoder of each model that ranks items by vectors; other models raise a UserError that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.vector_model import VectorModel
from nextitem.models.gru4rec import GRU4Rec
from nextitem.models.hstu import HSTU
from nextitem.models.nextitnet import NextItNet
from nextitem.models.sasrec import SASRec
from nextitem.models.sr_gnn import SRGNN
from nextitem.models.two_tower import TwoTower
from nextitem.pipeline.exporting.history_modules import (
    GRU4RecHistory,
    HistoryModule,
    HSTUHistory,
    NextItNetHistory,
    SASRecHistory,
    SRGNNHistory,
)
from nextitem.pipeline.exporting.tower_modules import UserTowerModule

ENCODERS: dict[type[Recommender], Callable[[Any], HistoryModule]] = {
    SASRec: SASRecHistory,
    GRU4Rec: GRU4RecHistory,
    HSTU: HSTUHistory,
    NextItNet: NextItNetHistory,
    SRGNN: SRGNNHistory,
    TwoTower: UserTowerModule,
}
EXPORTABLE = "sasrec, gru4rec, hstu, nextitnet, sr-gnn and two-tower"


def encoder_of(model: Recommender, name: str) -> tuple[VectorModel, HistoryModule]:
    """Return the model and the encoder of its requests, for ONNX.

    Raises UserError if the model, which the user calls `name`, cannot be exported.
    """
    # A subclass may compute its vectors otherwise, so only the classes themselves are exported.
    encoder = ENCODERS.get(type(model))
    if encoder is None:
        raise UserError(
            f"{name} cannot be exported to ONNX: {EXPORTABLE} can; use --format generator for depth-decoder and "
            "tiger, --format vectors for matrix-factorisation"
        )
    assert isinstance(model, VectorModel)
    return model, encoder(model)
