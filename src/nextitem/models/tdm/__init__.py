"""Tree-based deep models: a network that scores the nodes of a tree, and ways to learn the tree."""
