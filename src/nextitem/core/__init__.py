"""Nouns and contracts. Read this folder first; everything else stands on it.

`ids` IdMap, `interactions` Interactions, `catalog` Catalog, `dataset` Dataset and Split, `jagged` Jagged,
`batch` SequenceBatch, `identifiers` IdentifierTable, `recommendations` Recommendations, `recommender` the one
contract, `roles` the small protocols beside it, `config` strict typed configs, `registry` what there is.
"""
