"""Content vectors of items, the input of tokenizers, towers and content similarity.

The offline default weights words by TF-IDF and reduces them by a truncated singular value decomposition (latent
semantic analysis, Deerwester et al. 1990). A setting can name a sentence encoder or a column of vectors instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.config import Config
from nextitem.core.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Progress = Callable[[int, int], None]  # (items done, items in all)

_ENCODER_BATCH = 256  # number of sentences encoded between two reports of progress

# Scripts that are written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_ASCII_WORD = re.compile("[a-z0-9]+")


class NoContentError(UserError):
    """The items have nothing from which the encoder can compute content vectors."""


class ContentConfig(Config):
    """Settings of the content vectors of items."""

    encoder: str = "tfidf-svd"
    """Source of the vectors: "tfidf-svd"; "column:<name>" or "content_<name>" for a column of number lists in the items
    file; anything else is the name or folder of a sentence-transformers model.
    """
    dim: int = Field(128, ge=1)
    """Width of the vectors of tfidf-svd; it is smaller if the catalogue has fewer words or items."""
    collaborative: bool = False
    """Train a projection of the vectors, so that items that users interact with together are near each other."""


def content_vectors(
    catalog: Catalog, config: ContentConfig, *, fit_items: int | None = None, progress: Progress | None = None
) -> Tensor:
    """Return the content vectors of the catalogue's items, [N + 1, D] float32; row 0, the padding, is zero.

    `tfidf-svd` reads the content sentences. If there are none, it reads the words and values of the features, and
    appends the standardised numeric features to the vectors. It is a pure function of the catalogue. Items without a
    known word get a zero vector.

    Args:
        catalog: the items.
        config: the encoder and the width.
        fit_items: `tfidf-svd` computes vocabulary, weights and axes from the first `fit_items` items (None: all), so
            that items appended later get vectors in the same space.
        progress: callback (number of encoded items, number of all items) of a sentence encoder.

    Raises:
        NoContentError: the items have neither text nor features that the encoder reads.
        UserError: the catalogue lacks the column that the encoder names, the column contains something else than
            equally long lists of finite numbers, or an encoder cannot be loaded.

    """
    column = _owner_column(config.encoder)
    if column is not None:
        vectors = _column_vectors(catalog, column)
    elif config.encoder == "tfidf-svd":
        vectors = _tfidf_vectors(catalog, config.dim, fit_items or catalog.num_items)
    else:
        vectors = _sentence_vectors(catalog, config.encoder, progress)
    padding = np.zeros((1, vectors.shape[1]), dtype=np.float32)
    return torch.from_numpy(np.concatenate([padding, vectors]))


def vector_columns(catalog: Catalog, names: Sequence[str] | None = None) -> list[Tensor]:
    """Return the vectors of columns of the items, [N, width] float32 each.

    `names` are columns of number lists; None: all columns content_<name> of number lists that are no features. Raises
    UserError as `content_vectors` does.
    """
    if names is None:
        table = catalog.table
        names = [
            name
            for name, kind in table.schema.items()
            if name.startswith("content_")
            and name not in catalog.features
            and isinstance(kind, pl.List | pl.Array)
            and kind.inner is not None
            and kind.inner.is_numeric()
        ]
    return [torch.from_numpy(_column_vectors(catalog, name)) for name in names]


def split_words(text: str) -> list[str]:
    """Return the words of a text in any language, in lower case, in order.

    A word is a run of letters, digits and combining marks (which are vowels in Hindi or Thai). Of scripts without
    spaces between words, single characters and pairs of neighbours are returned instead.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    spaced_text = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    words: list[str] = []
    for run in spaced_text.split():
        start = 0
        for part in _UNSPACED.finditer(run):
            words += [run[start : part.start()]] if part.start() > start else []
            words += part.group()
            words += [part.group()[i : i + 2] for i in range(len(part.group()) - 1)]
            start = part.end()
        words += [run[start:]] if start < len(run) else []
    return words


def _owner_column(encoder: str) -> str | None:
    """Return the column of vectors that an encoder's name refers to, or None if it is another encoder."""
    if encoder.startswith("column:"):
        return encoder.removeprefix("column:")
    return encoder if encoder.startswith("content_") else None


def _column_vectors(catalog: Catalog, column: str) -> NDArray[np.float32]:
    """Return the vectors of a column of number lists, [N, D]; raise UserError unless finite and of one length."""
    table = catalog.table
    if column not in table.columns:
        raise UserError(f"the items have no column {column!r}; there are: {', '.join(table.columns)}")
    values = table[column]
    inner = values.dtype.inner if isinstance(values.dtype, (pl.List, pl.Array)) else None
    if inner is None or not inner.is_numeric():
        raise UserError(f"items column {column!r} must contain lists of numbers, got {values.dtype}")
    lengths = values.cast(pl.List(pl.Float32)).list.len()
    width = lengths.max()
    if not isinstance(width, int) or width < 1:
        raise UserError(f"items column {column!r} contains no numbers")
    rows = values.cast(pl.List(pl.Float32))
    is_wrong = (lengths.fill_null(0) != width) | ~rows.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    if is_wrong.fill_null(True).any():
        row = int(is_wrong.fill_null(True).arg_true()[0])
        raise UserError(
            f"items column {column!r}: the vector of item {catalog.ids.external[row]!r} has {lengths[row] or 0} "
            f"entries or one that is not finite, others have {width}; give every item {width} finite numbers"
        )
    return np.array(rows.explode().to_numpy(), dtype=np.float32).reshape(-1, width)


def _tfidf_vectors(catalog: Catalog, dim: int, fit_items: int) -> NDArray[np.float32]:
    """Return TF-IDF vectors of the content sentences, or of the features if there are no sentences, [N, D]."""
    documents = [split_words(sentence) for sentence in _sentences(catalog)]
    numeric = np.zeros((catalog.num_items, 0), dtype=np.float32)
    if not any(documents):
        documents = _feature_words(catalog)
        numeric = _numeric_features(catalog, fit_items)
    if not any(documents[:fit_items]):
        if not numeric.shape[1]:
            raise NoContentError(
                "content vectors cannot be computed: the items have neither text nor features. Add a title "
                "column to the items file (or name [items] text or features in dataset.toml), or give your own "
                'vectors in a column content_<name> and set encoder = "content_<name>"'
            )
        return numeric
    return np.concatenate([_latent_semantics(documents, dim, fit_items), numeric], axis=1)


def _sentences(catalog: Catalog) -> list[str]:
    """Return the content sentences, "" for items without one; an empty list if the catalogue has none."""
    return [] if catalog.text is None else catalog.text.fill_null("").to_list()


def _latent_semantics(documents: Sequence[list[str]], dim: int, fit_items: int) -> NDArray[np.float32]:
    """Return the TF-IDF weights of documents, projected to the first `dim` singular axes of the first `fit_items`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    vectorizer = TfidfVectorizer(analyzer=list, sublinear_tf=True, dtype=np.float32)
    vectorizer.fit(documents[:fit_items])
    weights = vectorizer.transform(documents)
    if weights.shape[1] <= dim:
        return np.asarray(weights.toarray(), dtype=np.float32)
    axes = randomized_svd(weights[:fit_items], min(dim, fit_items), random_state=0)[2]
    return np.asarray(weights @ axes.T, dtype=np.float32)


def _feature_words(catalog: Catalog) -> list[list[str]]:
    """Return the words of text features and `column=value` for each categorical value, item by item."""
    documents: list[list[str]] = [[] for _ in range(catalog.num_items)]
    for column, kind in catalog.features.items():
        if kind not in ("categorical", "categorical-list", "text"):
            continue
        for document, value in zip(documents, catalog.table[column].to_list(), strict=True):
            parts: Iterable[object] = value if isinstance(value, list) else [value]
            for part in parts:
                if part is not None:
                    document += split_words(str(part)) if kind == "text" else [f"{column}={part}"]
    return documents


def _numeric_features(catalog: Catalog, fit_items: int) -> NDArray[np.float32]:
    """Return numeric features [N, columns], standardised over the first `fit_items`; missing values are the mean."""
    columns = [column for column, kind in catalog.features.items() if kind == "numeric"]
    values = np.full((catalog.num_items, len(columns)), np.nan)
    for index, column in enumerate(columns):
        values[:, index] = catalog.table[column].cast(pl.Float64).to_numpy()
    values[~np.isfinite(values)] = np.nan
    fit_values = np.where(np.isnan(values[:fit_items]).all(axis=0), 0.0, values[:fit_items])
    deviation = np.nanstd(fit_values, axis=0)
    standard = (values - np.nanmean(fit_values, axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return np.asarray(np.nan_to_num(standard[:, deviation > 0]), dtype=np.float32)


def _sentence_vectors(catalog: Catalog, encoder: str, progress: Progress | None) -> NDArray[np.float32]:
    """Return the vectors of a sentence-transformers model for the content sentences, [N, D]."""
    sentences = _sentences(catalog)
    if not any(sentences):
        raise NoContentError(
            f"encoder {encoder!r} reads content sentences, and the items have none; name columns in [items] text "
            'of dataset.toml, or use encoder = "tfidf-svd", which can read features'
        )
    model = _load_sentence_encoder(encoder)
    parts = []
    for start in range(0, len(sentences), _ENCODER_BATCH):
        chunk = sentences[start : start + _ENCODER_BATCH]
        parts.append(model.encode(chunk, show_progress_bar=False, convert_to_numpy=True))
        if progress is not None:
            progress(start + len(chunk), len(sentences))
    return np.concatenate(parts).astype(np.float32)


def _load_sentence_encoder(encoder: str) -> SentenceTransformer:
    """Load a sentence-transformers model by its folder or name; raise UserError if that fails."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"encoder {encoder!r} needs the extra `text`; install it with: pip install 'nextitem[text]'"
        ) from None
    is_local = Path(encoder).is_dir()
    name = encoder if is_local or "/" in encoder else f"sentence-transformers/{encoder}"
    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no encoder {encoder!r} could be loaded ({reason}); use tfidf-svd, column:<name>, or the folder or "
            "name of a sentence-transformers model that is on this machine or can be downloaded"
        ) from None
