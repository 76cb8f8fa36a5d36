"""Tree-based deep models: a network that scores nodes, and ways to learn the tree."""
