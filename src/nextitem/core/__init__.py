"""Data types and contracts of the package. Read this folder first: all other folders depend on it.

`ids` IdMap, `interactions` Interactions, `catalog` Catalog, `dataset` Dataset and Split, `jagged` Jagged,
`batch` SequenceBatch, `identifiers` IdentifierTable, `recommendations` Recommendations, `recommender` the contract of
every model, `roles` small protocols for further abilities, `config` strict typed configs, `registry` the available
models, tokenizers, losses, metrics and re-rankers.
"""
