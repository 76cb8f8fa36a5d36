"""Building blocks of models: attention, fields, ranking layers and quantisation, one folder each."""
