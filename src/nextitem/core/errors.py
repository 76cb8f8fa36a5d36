"""The exceptions of the package: mistakes of users, and models that break the contract."""


class UserError(ValueError):
    """A mistake in what a user gave: the message names what, where, and the way out.

    The command line prints it as one line on stderr and exits with code 2; it never shows a traceback.
    """


class ContractError(RuntimeError):
    """A model broke the contract of `Recommender`: its answer holds an item that the request forbids, for example."""
