"""What there is, by name: literal tables that load a class only when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nextitem.core.errors import UserError

if TYPE_CHECKING:
    import polars as pl

# What a class of each kind must be a subclass of; losses and metrics are functions.
CONTRACTS = {
    "model": "nextitem.core.recommender:Recommender",
    "tokenizer": "nextitem.tokenizers.tokenizer:Tokenizer",
    "reranker": "nextitem.cascade.reranker:Reranker",
}


@dataclass(frozen=True)
class Entry:
    """One registered thing: where it lives, one line on what it is, and where it comes from."""

    path: str  # "package.module:Name"
    summary: str
    paper: str

    def load(self) -> Any:
        """Import and return it."""
        return import_object(self.path)


def import_object(path: str) -> Any:
    """Import and return the object at "package.module:Name"; UserError if there is none."""
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
    "popularity": Entry("nextitem.models.popularity:Popularity", "most frequent items, with time decay", "-"),
    "geo-popularity": Entry(
        "nextitem.models.geo_popularity:GeoPopularity", "most frequent items of the request's region, smoothed", "-"
    ),
    "item-cf": Entry("nextitem.models.item_cf:ItemCF", "item-to-item collaborative filtering", "Linden et al. 2003"),
    "user-cf": Entry("nextitem.models.user_cf:UserCF", "what users with a similar history took", "Resnick et al. 1994"),
    "swing": Entry("nextitem.models.swing:Swing", "items that pairs of unlike users took", "arXiv 2010.05525"),
    "matrix-factorisation": Entry(
        "nextitem.models.matrix_factorisation:MatrixFactorisation",
        "vectors of users and items by alternating least squares",
        "Hu et al. 2008; arXiv 2110.14037",
    ),
    "content-neighbours": Entry(
        "nextitem.models.content_neighbours:ContentNeighbours",
        "items whose content is like the history's",
        "Pazzani & Billsus 1997",
    ),
    "new-items": Entry(
        "nextitem.models.new_items:NewItems", "new items like the history, with exploration", "Auer et al. 2002"
    ),
    "item-graph": Entry(
        "nextitem.models.item_graph:ItemGraph",
        "untrained walk on item transitions and content",
        "arXiv 2605.07125",
    ),
    "gru4rec": Entry(
        "nextitem.models.gru4rec:GRU4Rec", "recurrent network over sessions", "arXiv 1511.06939, 1706.03847"
    ),
    "sasrec": Entry("nextitem.models.sasrec:SASRec", "causal self-attention over the history", "arXiv 1808.09781"),
    "hstu": Entry(
        "nextitem.models.hstu:HSTU", "gated pointwise attention, aware of positions and time", "arXiv 2402.17152"
    ),
    "nextitnet": Entry(
        "nextitem.models.nextitnet:NextItNet", "causal dilated convolutions over the history", "arXiv 1808.05163"
    ),
    "sr-gnn": Entry("nextitem.models.sr_gnn:SRGNN", "gated graph network on item transitions", "arXiv 1811.00855"),
    "tdm": Entry(
        "nextitem.models.tdm.tdm:TDM", "walks down a tree of items that is learnt in turns", "arXiv 1801.02294"
    ),
    "jtm": Entry("nextitem.models.tdm.jtm:JTM", "learns tree and network with one objective", "arXiv 1902.07565"),
    "tiger": Entry("nextitem.models.tiger:Tiger", "generates an item's semantic ID, code by code", "arXiv 2305.05065"),
    "cobra": Entry(
        "nextitem.models.cobra:Cobra", "spells codes, then points to an item with a vector", "arXiv 2503.02453"
    ),
    "streaming-vq": Entry(
        "nextitem.models.streaming_vq:StreamingVQ",
        "an index of clusters that learns with the stream",
        "arXiv 2501.08695",
    ),
    "two-tower": Entry(
        "nextitem.models.two_tower:TwoTower", "a vector of the request meets a vector of the item", "Huang et al. 2013"
    ),
    "cascade": Entry(
        "nextitem.cascade.cascade:Cascade",
        "retrieval channels, rankers and re-rankers in a row",
        "Covington et al. 2016",
    ),
    "lr": Entry("nextitem.models.rankers.lr:LR", "logistic regression over fields, a ranker", "McMahan et al. 2013"),
    "gbdt": Entry(
        "nextitem.models.rankers.gbdt:GBDT",
        "boosted trees over fields, a ranker",
        "Friedman 2001; Burges 2010; He et al. 2014",
    ),
    "wide-and-deep": Entry(
        "nextitem.models.rankers.wide_and_deep:WideAndDeep",
        "a linear model and a network over fields, a ranker",
        "arXiv 1606.07792",
    ),
    "deepfm": Entry(
        "nextitem.models.rankers.deepfm:DeepFM", "factorisation machine and network, a ranker", "arXiv 1703.04247"
    ),
    "dcn": Entry(
        "nextitem.models.rankers.dcn:DCN", "explicit crosses of fields, a ranker", "arXiv 1708.05123, 2008.13535"
    ),
    "din": Entry(
        "nextitem.models.rankers.din:DIN", "reads the history with the candidate in view, a ranker", "arXiv 1706.06978"
    ),
    "multi-behaviour": Entry(
        "nextitem.models.rankers.multi_behaviour:MultiBehaviour",
        "a sequence for each action, read with the others, a ranker",
        "Gu et al. 2020; Yuan et al. 2022",
    ),
    "sim": Entry(
        "nextitem.models.rankers.sim:SIM", "searches lifelong histories for a candidate, a ranker", "arXiv 2006.05639"
    ),
}

TOKENIZERS: dict[str, Entry] = {
    "random": Entry(
        "nextitem.tokenizers.random_codes:RandomCodes", "codes that say nothing, an ablation", "arXiv 2305.05065"
    ),
    "lsh": Entry("nextitem.tokenizers.lsh:LSH", "signs of random projections", "Charikar 2002; arXiv 2305.05065"),
    "hierarchical-kmeans": Entry(
        "nextitem.tokenizers.hierarchical_kmeans:HierarchicalKMeans",
        "clusters within clusters of the content",
        "arXiv 2202.06991",
    ),
    "tree": Entry("nextitem.tokenizers.tree:Tree", "path in a balanced tree over the content", "arXiv 1801.02294"),
    "opq": Entry("nextitem.tokenizers.opq:OPQ", "clusters of slices of the turned content", "Ge et al. 2013"),
    "fsq": Entry("nextitem.tokenizers.fsq:FSQ", "auto-encoder with rounded dimensions", "arXiv 2309.15505"),
    "vq-vae": Entry(
        "nextitem.tokenizers.vq_vae:VQVAE", "auto-encoder with a code a slice", "arXiv 1711.00937, 2305.05065"
    ),
    "residual-kmeans": Entry(
        "nextitem.tokenizers.residual_kmeans:ResidualKMeans",
        "k-means on residuals, level by level",
        "arXiv 2502.18965",
    ),
    "rq-vae": Entry(
        "nextitem.tokenizers.rq_vae:RQVAE", "residual-quantised auto-encoder", "arXiv 2203.01941, 2305.05065"
    ),
}

LOSSES: dict[str, Entry] = {
    "full-softmax": Entry("nextitem.losses.full_softmax:full_softmax", "cross-entropy over the catalogue", "-"),
    "sampled-softmax": Entry(
        "nextitem.losses.sampled_softmax:sampled_softmax",
        "cross-entropy over sampled items, log_q corrected",
        "Bengio & Senecal 2008",
    ),
    "bce": Entry("nextitem.losses.bce:bce", "binary cross-entropy with sampled negatives", "arXiv 1808.09781"),
    "in-batch-softmax": Entry(
        "nextitem.losses.in_batch_softmax:in_batch_softmax", "cross-entropy over the batch's own targets", "-"
    ),
    "merged-softmax": Entry(
        "nextitem.losses.merged_softmax:merged_softmax", "the same where columns repeat items, each scored once", "-"
    ),
    "bpr": Entry("nextitem.losses.bpr:bpr", "positive above each negative", "arXiv 1205.2618"),
    "bpr-max": Entry("nextitem.losses.bpr_max:bpr_max", "positive above the highest negatives", "arXiv 1706.03847"),
    "top1": Entry("nextitem.losses.top1:top1", "positive above each negative, negatives near zero", "arXiv 1511.06939"),
    "top1-max": Entry(
        "nextitem.losses.top1_max:top1_max", "positive above the highest negatives, those near zero", "arXiv 1706.03847"
    ),
    "contrastive": Entry(
        "nextitem.losses.contrastive:contrastive", "InfoNCE between two views of a batch", "arXiv 2010.14395"
    ),
    "gbce": Entry("nextitem.losses.gbce:gbce", "generalised binary cross-entropy", "arXiv 2308.07192"),
}

METRICS: dict[str, Entry] = {
    "recall": Entry("nextitem.evaluation.metrics.accuracy:recall", "share of the targets in the list", "-"),
    "hit_rate": Entry("nextitem.evaluation.metrics.accuracy:hit_rate", "1 where any target is in the list", "-"),
    "precision": Entry("nextitem.evaluation.metrics.accuracy:precision", "share of the list that is a target", "-"),
    "ndcg": Entry(
        "nextitem.evaluation.metrics.accuracy:ndcg",
        "discounted gain over the ideal one",
        "Jarvelin & Kekalainen 2002",
    ),
    "mrr": Entry("nextitem.evaluation.metrics.accuracy:mrr", "inverse rank of the first target", "-"),
    "map": Entry("nextitem.evaluation.metrics.accuracy:average_precision", "mean precision at each hit", "-"),
    "coverage": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:coverage", "share of the catalogue ever recommended", "-"
    ),
    "gini": Entry("nextitem.evaluation.metrics.beyond_accuracy:gini", "inequality of exposure; 0 is even", "-"),
    "novelty": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:novelty",
        "mean self-information of the items, bits",
        "Vargas & Castells 2011",
    ),
    "diversity": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:diversity",
        "mean distance within a list",
        "Ziegler et al. 2005",
    ),
    "serendipity": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:serendipity",
        "hits that popularity would not have brought",
        "Ge et al. 2010",
    ),
    "popularity_bias": Entry(
        "nextitem.evaluation.metrics.beyond_accuracy:popularity_bias",
        "mean popularity of lists over histories'",
        "Abdollahpouri et al. 2019",
    ),
    "auc": Entry(
        "nextitem.evaluation.metrics.ranking:auc",
        "chance that a positive scores above a negative",
        "Hanley & McNeil 1982",
    ),
    "gauc": Entry(
        "nextitem.evaluation.metrics.ranking:gauc", "auc by user, weighted by impressions", "arXiv 1706.06978"
    ),
    "log_loss": Entry(
        "nextitem.evaluation.metrics.ranking:log_loss", "negative log-likelihood of the labels, nats", "-"
    ),
    "normalised_entropy": Entry(
        "nextitem.evaluation.metrics.ranking:normalised_entropy",
        "log_loss over that of the labels' mean",
        "He et al. 2014",
    ),
    "calibration_error": Entry(
        "nextitem.evaluation.metrics.ranking:calibration_error",
        "distance of probabilities from shares of positives",
        "arXiv 1904.01685",
    ),
}

RERANKERS: dict[str, Entry] = {
    "mmr": Entry("nextitem.cascade.mmr:MMR", "relevance less likeness to what is chosen", "Carbonell & Goldstein 1998"),
    "dpp": Entry("nextitem.cascade.dpp:DPP", "greedy determinant of relevance and likeness", "arXiv 1709.05135"),
    "calibrated": Entry(
        "nextitem.cascade.calibrated:Calibrated", "a list that is made up as the history is", "Steck 2018"
    ),
    "rules": Entry("nextitem.cascade.rules:Rules", "filters, pins, caps, gaps and quotas, relaxed in order", "-"),
    "exposure": Entry(
        "nextitem.cascade.exposure:Exposure", "exposure of each provider by its merit", "Singh & Joachims 2018"
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
    """Return the entry of that name, or one for an import path "package.module:Class".

    Raises UserError if nothing is called so, the path cannot be imported, or its class lacks the contract of `kind`.
    """
    table = KINDS[kind]
    if name in table:
        return table[name]
    if ":" not in name:
        raise UserError(
            f"no {kind} is called {name!r}; there are: {', '.join(table)}; "
            'a class of your own is named by its import path: "my_package.my_module:MyClass"'
        )
    _check_contract(kind, name, import_object(name))
    return Entry(name, "a class of your own", "-")


def _check_contract(kind: str, path: str, cls: Any) -> None:
    from nextitem.core.config import Config  # pydantic takes a third of a second: `nextitem --help` does without

    contract = import_object(CONTRACTS[kind])
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise UserError(f"{path} is no {kind}: it must be a subclass of {CONTRACTS[kind].replace(':', '.')}")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{path} does not define {', '.join(missing)}, which every {kind} must")
    settings = getattr(cls, "Config", None)
    if not (isinstance(settings, type) and issubclass(settings, Config)):
        raise UserError(
            f"{path} has no Config: give it a class attribute Config, a subclass of nextitem.core.config.Config"
        )


def models(kind: str | None = None) -> pl.DataFrame:
    """Return what there is as a data frame: kind, name, summary, paper.

    `kind` restricts it to model, tokenizer, loss, metric or reranker; UserError for another kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind!r}: choose one of {', '.join(KINDS)}")
    import polars as pl

    rows = [
        {"kind": each, "name": name, "summary": known.summary, "paper": known.paper}
        for each, table in KINDS.items()
        if kind in (None, each)
        for name, known in table.items()
    ]
    return pl.DataFrame(rows)
