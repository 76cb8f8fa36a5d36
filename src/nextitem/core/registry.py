"""Registry of models, tokenizers, losses, metrics and re-rankers by name.

The tables are literal: a class is imported only when its entry is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nextitem.core.errors import UserError

if TYPE_CHECKING:
    import polars as pl

# Base class that a class of each kind must derive from; losses and metrics are functions.
CONTRACTS = {
    "model": "nextitem.core.recommender:Recommender",
    "tokenizer": "nextitem.tokenizers.tokenizer:Tokenizer",
    "reranker": "nextitem.cascade.reranker:Reranker",
}


@dataclass(frozen=True)
class Entry:
    """One entry of the registry: import path "package.module:Name", one-line summary, and paper ("-": none)."""

    path: str
    summary: str
    paper: str

    def load(self) -> Any:
        """Import and return the class or function of the entry."""
        return import_object(self.path)


def import_object(path: str) -> Any:
    """Import and return the object at "package.module:Name"; UserError if it does not exist or cannot be imported."""
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except AttributeError:
        raise UserError(f"{path}: module {module} has no {name}; check the name after the colon") from None
    except ImportError as error:
        if error.name and not (module == error.name or module.startswith(error.name + ".")):
            raise UserError(f"{path}: importing {module} fails: {error}; install what it needs") from None
        raise UserError(
            f"{path}: no module {module} can be imported ({error}); install it, or add its folder to PYTHONPATH"
        ) from None


MODELS: dict[str, Entry] = {
    "popularity": Entry("nextitem.models.popularity:Popularity", "most popular items, with time decay", "-"),
    "geo-popularity": Entry(
        "nextitem.models.geo_popularity:GeoPopularity",
        "most popular items of the user's region, smoothed towards wider regions",
        "-",
    ),
    "item-cf": Entry("nextitem.models.item_cf:ItemCF", "item-to-item collaborative filtering", "Linden et al. 2003"),
    "user-cf": Entry("nextitem.models.user_cf:UserCF", "user-based collaborative filtering", "Resnick et al. 1994"),
    "swing": Entry(
        "nextitem.models.swing:Swing",
        "item similarity from pairs of users who share few other items",
        "arXiv 2010.05525",
    ),
    "matrix-factorisation": Entry(
        "nextitem.models.matrix_factorisation:MatrixFactorisation",
        "matrix factorisation by alternating least squares (iALS)",
        "Hu et al. 2008; arXiv 2110.14037",
    ),
    "content-neighbours": Entry(
        "nextitem.models.content_neighbours:ContentNeighbours",
        "items with content similar to the history",
        "Pazzani & Billsus 1997",
    ),
    "new-items": Entry(
        "nextitem.models.new_items:NewItems",
        "new items with content similar to the history, plus an exploration bonus",
        "Auer et al. 2002",
    ),
    "item-graph": Entry(
        "nextitem.models.item_graph:ItemGraph",
        "untrained walk on the graph of item transitions, re-weighted by content",
        "arXiv 2605.07125",
    ),
    "gru4rec": Entry(
        "nextitem.models.gru4rec:GRU4Rec", "recurrent network over sessions", "arXiv 1511.06939, 1706.03847"
    ),
    "sasrec": Entry("nextitem.models.sasrec:SASRec", "causal self-attention over the history", "arXiv 1808.09781"),
    "hstu": Entry(
        "nextitem.models.hstu:HSTU", "gated pointwise attention with position and time biases", "arXiv 2402.17152"
    ),
    "nextitnet": Entry(
        "nextitem.models.nextitnet:NextItNet", "causal dilated convolutions over the history", "arXiv 1808.05163"
    ),
    "sr-gnn": Entry(
        "nextitem.models.sr_gnn:SRGNN", "gated graph neural network on item transitions", "arXiv 1811.00855"
    ),
    "tdm": Entry(
        "nextitem.models.tdm.tdm:TDM",
        "beam search in a tree of items; tree and network are trained in turns",
        "arXiv 1801.02294",
    ),
    "jtm": Entry(
        "nextitem.models.tdm.jtm:JTM",
        "beam search in a tree of items; tree and network share one objective",
        "arXiv 1902.07565",
    ),
    "tiger": Entry(
        "nextitem.models.tiger:Tiger", "generates the semantic ID of an item, code by code", "arXiv 2305.05065"
    ),
    "depth-decoder": Entry(
        "nextitem.models.depth_decoder:DepthDecoder",
        "transformer over items; a small network generates the codes of the next item, one vector for each node",
        "arXiv 2203.01941, 2508.14910",
    ),
    "onerec": Entry(
        "nextitem.models.onerec:OneRec",
        "generates a session as a list, item by item and code by code; decoder with a mixture of experts",
        "arXiv 2502.18965",
    ),
    "onerec-v2": Entry(
        "nextitem.models.onerec_v2:OneRecV2",
        "lazy decoder: reads the history without an encoder and generates the codes of the next item, by objective",
        "arXiv 2508.20900",
    ),
    "onerec-tr": Entry(
        "nextitem.models.onerec_tr:OneRecTR",
        "reads a user on four time scales, a lifelong history included; generates the codes of the next item",
        "arXiv 2506.13695",
    ),
    "cobra": Entry(
        "nextitem.models.cobra:Cobra",
        "generates the codes of an item, then ranks items by a generated dense vector",
        "arXiv 2503.02453",
    ),
    "streaming-vq": Entry(
        "nextitem.models.streaming_vq:StreamingVQ",
        "two towers with an index of clusters that is updated with the stream",
        "arXiv 2501.08695",
    ),
    "two-tower": Entry(
        "nextitem.models.two_tower:TwoTower",
        "inner product of a request vector and an item vector",
        "Huang et al. 2013",
    ),
    "blend": Entry(
        "nextitem.models.blend:Blend",
        "mixture of the probabilities of several models, with weights chosen on validation",
        "-",
    ),
    "cascade": Entry(
        "nextitem.cascade.cascade:Cascade",
        "pipeline of retrieval channels, rankers and re-rankers",
        "Covington et al. 2016",
    ),
    "lr": Entry("nextitem.models.rankers.lr:LR", "ranker: logistic regression over fields", "McMahan et al. 2013"),
    "gbdt": Entry(
        "nextitem.models.rankers.gbdt:GBDT",
        "ranker: gradient-boosted trees over fields",
        "Friedman 2001; Burges 2010; He et al. 2014",
    ),
    "wide-and-deep": Entry(
        "nextitem.models.rankers.wide_and_deep:WideAndDeep",
        "ranker: a linear model plus a deep network over fields",
        "arXiv 1606.07792",
    ),
    "deepfm": Entry(
        "nextitem.models.rankers.deepfm:DeepFM",
        "ranker: a factorisation machine plus a deep network over fields",
        "arXiv 1703.04247",
    ),
    "dcn": Entry(
        "nextitem.models.rankers.dcn:DCN",
        "ranker: deep network with explicit crosses of fields",
        "arXiv 1708.05123, 2008.13535",
    ),
    "din": Entry(
        "nextitem.models.rankers.din:DIN",
        "ranker: attention of the candidate over the history",
        "arXiv 1706.06978",
    ),
    "multi-behaviour": Entry(
        "nextitem.models.rankers.multi_behaviour:MultiBehaviour",
        "ranker: cross attention between one sequence per action, then attention of the candidate",
        "Gu et al. 2020; Yuan et al. 2022",
    ),
    "hstu-ranking": Entry(
        "nextitem.models.rankers.hstu_ranking:HSTURanking",
        "ranker: candidates attend to the stream of what a user saw and did, read once for all of them",
        "arXiv 2402.17152",
    ),
    "mtgr": Entry(
        "nextitem.models.rankers.mtgr:MTGR",
        "ranker: candidates with their cross features attend to the user's features, history and recent behaviour",
        "arXiv 2505.18654",
    ),
    "sim": Entry(
        "nextitem.models.rankers.sim:SIM",
        "ranker: searches a lifelong history for events relevant to the candidate",
        "arXiv 2006.05639",
    ),
}

TOKENIZERS: dict[str, Entry] = {
    "random": Entry(
        "nextitem.tokenizers.random_codes:RandomCodes", "random codes (ablation baseline)", "arXiv 2305.05065"
    ),
    "lsh": Entry(
        "nextitem.tokenizers.lsh:LSH",
        "locality-sensitive hashing: signs of random projections of the content vectors",
        "Charikar 2002; arXiv 2305.05065",
    ),
    "hierarchical-kmeans": Entry(
        "nextitem.tokenizers.hierarchical_kmeans:HierarchicalKMeans",
        "hierarchical k-means on the content vectors",
        "arXiv 2202.06991",
    ),
    "tree": Entry(
        "nextitem.tokenizers.tree:Tree", "path of an item in a balanced tree over the content", "arXiv 1801.02294"
    ),
    "clusters": Entry(
        "nextitem.tokenizers.clusters:Clusters",
        "balanced clusters by content and by transitions between items, down to single items",
        "arXiv 2604.12234, 1801.02294",
    ),
    "opq": Entry("nextitem.tokenizers.opq:OPQ", "k-means on slices of the rotated content vectors", "Ge et al. 2013"),
    "fsq": Entry("nextitem.tokenizers.fsq:FSQ", "auto-encoder whose latent dimensions are rounded", "arXiv 2309.15505"),
    "vq-vae": Entry(
        "nextitem.tokenizers.vq_vae:VQVAE",
        "auto-encoder whose latent vector is quantised slice by slice",
        "arXiv 1711.00937, 2305.05065",
    ),
    "collaborative-multimodal": Entry(
        "nextitem.tokenizers.collaborative_multimodal:CollaborativeMultimodal",
        "residual k-means on content of any modalities, moved by what users take together",
        "arXiv 2506.13695",
    ),
    "residual-kmeans": Entry(
        "nextitem.tokenizers.residual_kmeans:ResidualKMeans",
        "k-means on the residuals of the content vectors, level by level",
        "arXiv 2502.18965",
    ),
    "rq-vae": Entry(
        "nextitem.tokenizers.rq_vae:RQVAE",
        "auto-encoder whose latent vector is quantised by residuals, level by level",
        "arXiv 2203.01941, 2305.05065",
    ),
}

LOSSES: dict[str, Entry] = {
    "full-softmax": Entry("nextitem.losses.full_softmax:full_softmax", "cross-entropy over the whole catalogue", "-"),
    "sampled-softmax": Entry(
        "nextitem.losses.sampled_softmax:sampled_softmax",
        "cross-entropy over the target and sampled items, with log_q correction",
        "Bengio & Senecal 2008",
    ),
    "bce": Entry("nextitem.losses.bce:bce", "binary cross-entropy with sampled negatives", "arXiv 1808.09781"),
    "in-batch-softmax": Entry(
        "nextitem.losses.in_batch_softmax:in_batch_softmax", "cross-entropy over the targets of the batch", "-"
    ),
    "merged-softmax": Entry(
        "nextitem.losses.merged_softmax:merged_softmax",
        "in-batch softmax that scores each distinct item once, for batches with repeated items",
        "-",
    ),
    "bpr": Entry(
        "nextitem.losses.bpr:bpr",
        "Bayesian personalised ranking: ranks the positive above each negative",
        "arXiv 1205.2618",
    ),
    "bpr-max": Entry(
        "nextitem.losses.bpr_max:bpr_max", "ranks the positive above the highest-scored negatives", "arXiv 1706.03847"
    ),
    "top1": Entry(
        "nextitem.losses.top1:top1",
        "ranks the positive above each negative and pulls scores of negatives to zero",
        "arXiv 1511.06939",
    ),
    "top1-max": Entry(
        "nextitem.losses.top1_max:top1_max",
        "ranks the positive above the highest-scored negatives and pulls their scores to zero",
        "arXiv 1706.03847",
    ),
    "contrastive": Entry(
        "nextitem.losses.contrastive:contrastive",
        "InfoNCE between two views of each sequence of a batch",
        "arXiv 2010.14395",
    ),
    "gbce": Entry(
        "nextitem.losses.gbce:gbce",
        "binary cross-entropy, calibrated for the overconfidence of negative sampling",
        "arXiv 2308.07192",
    ),
}

METRICS: dict[str, Entry] = {
    "recall": Entry("nextitem.evaluation.metrics.accuracy:recall", "fraction of the targets that are in the list", "-"),
    "hit_rate": Entry(
        "nextitem.evaluation.metrics.accuracy:hit_rate", "fraction of requests with any target in the list", "-"
    ),
    "precision": Entry(
        "nextitem.evaluation.metrics.accuracy:precision", "fraction of the list that consists of targets", "-"
    ),
    "ndcg": Entry(
        "nextitem.evaluation.metrics.accuracy:ndcg",
        "discounted cumulative gain, relative to the ideal list",
        "Jarvelin & Kekalainen 2002",
    ),
    "mrr": Entry("nextitem.evaluation.metrics.accuracy:mrr", "mean reciprocal rank of the first target", "-"),
    "map": Entry(
        "nextitem.evaluation.metrics.accuracy:average_precision",
        "mean average precision: mean of the precision at the rank of each target",
        "-",
    ),
    "coverage": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:coverage",
        "fraction of the catalogue that is recommended at least once",
        "-",
    ),
    "gini": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:gini",
        "Gini coefficient of the exposure of items; 0: equal exposure",
        "-",
    ),
    "novelty": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:novelty",
        "mean self-information of the recommended items, in bits",
        "Vargas & Castells 2011",
    ),
    "diversity": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:diversity",
        "mean distance between the items of a list",
        "Ziegler et al. 2005",
    ),
    "serendipity": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:serendipity",
        "fraction of the list that are targets and not among the most popular items",
        "Ge et al. 2010",
    ),
    "popularity_bias": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:popularity_bias",
        "mean popularity of the list, relative to that of the history",
        "Abdollahpouri et al. 2019",
    ),
    "auc": Entry(
        "nextitem.evaluation.metrics.ranking:auc",
        "probability that a positive scores above a negative",
        "Hanley & McNeil 1982",
    ),
    "gauc": Entry(
        "nextitem.evaluation.metrics.ranking:gauc",
        "mean AUC of users, weighted by their number of impressions",
        "arXiv 1706.06978",
    ),
    "log_loss": Entry(
        "nextitem.evaluation.metrics.ranking:log_loss", "mean negative log-likelihood of the labels, in nats", "-"
    ),
    "normalised_entropy": Entry(
        "nextitem.evaluation.metrics.ranking:normalised_entropy",
        "log-loss, relative to that of always predicting the mean label",
        "He et al. 2014",
    ),
    "calibration_error": Entry(
        "nextitem.evaluation.metrics.ranking:calibration_error",
        "mean difference between predicted probabilities and observed fractions of positives",
        "arXiv 1904.01685",
    ),
}

RERANKERS: dict[str, Entry] = {
    "mmr": Entry(
        "nextitem.cascade.mmr:MMR",
        "maximal marginal relevance: relevance minus similarity to the items before",
        "Carbonell & Goldstein 1998",
    ),
    "dpp": Entry(
        "nextitem.cascade.dpp:DPP",
        "determinantal point process: greedy determinant of relevance and similarity",
        "arXiv 1709.05135",
    ),
    "calibrated": Entry(
        "nextitem.cascade.calibrated:Calibrated",
        "list with the distribution of genres, or another column, of the history",
        "Steck 2018",
    ),
    "rules": Entry(
        "nextitem.cascade.rules:Rules", "filters, pins, caps, gaps and quotas, relaxed in order of priority", "-"
    ),
    "exposure": Entry(
        "nextitem.cascade.exposure:Exposure",
        "exposure of each provider in proportion to its merit",
        "Singh & Joachims 2018",
    ),
}

KINDS: dict[str, dict[str, Entry]] = {
    "model": MODELS,
    "tokenizer": TOKENIZERS,
    "loss": LOSSES,
    "metric": METRICS,
    "reranker": RERANKERS,
}


def entry(kind: str, name: str) -> Entry:
    """Return the registry entry of `name`, or a new entry if `name` is an import path "package.module:Class".

    Args:
        kind: model, tokenizer, loss, metric or reranker.
        name: name of the registry, or import path.

    Raises:
        UserError: the name is unknown, the path cannot be imported, or its class does not satisfy the contract of
            `kind`.

    """
    table = KINDS[kind]
    if name in table:
        return table[name]
    if ":" not in name:
        raise UserError(
            f"no {kind} is called {name!r}; there are: {', '.join(table)}; "
            'for your own class, write its import path: "my_package.my_module:MyClass"'
        )
    _check_contract(kind, name, import_object(name))
    return Entry(name, "your own class", "-")


def _check_contract(kind: str, path: str, cls: Any) -> None:
    """Raise UserError if the class at the import path `path` does not satisfy the contract of `kind`."""
    # Importing pydantic takes a third of a second, which `nextitem --help` should not pay.
    from nextitem.core.config import Config

    contract = import_object(CONTRACTS[kind])
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise UserError(f"{path} is no {kind}: it must be a subclass of {CONTRACTS[kind].replace(':', '.')}")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{path} does not define {', '.join(missing)}, which every {kind} must define")
    settings = getattr(cls, "Config", None)
    if not (isinstance(settings, type) and issubclass(settings, Config)):
        raise UserError(
            f"{path} has no Config: give it a class attribute Config, a subclass of nextitem.core.config.Config"
        )


def models(kind: str | None = None) -> pl.DataFrame:
    """Return the entries of the registry as a data frame with the columns kind, name, summary, paper.

    `kind` selects one kind: model, tokenizer, loss, metric or reranker; UserError for another kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind!r}: choose one of {', '.join(KINDS)}")
    import polars as pl

    rows = [
        {"kind": table_kind, "name": name, "summary": item.summary, "paper": item.paper}
        for table_kind, table in KINDS.items()
        if kind in (None, table_kind)
        for name, item in table.items()
    ]
    return pl.DataFrame(rows)
