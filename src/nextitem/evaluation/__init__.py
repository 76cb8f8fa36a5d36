"""One protocol, one set of metrics, for everything that recommends."""
