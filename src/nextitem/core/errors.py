"""Exceptions of the package: mistakes of users, and models that break the contract."""


class UserError(ValueError):
    """A mistake in the input of a user: the message names the input, the place and the way out.

    The command line prints it as one line on stderr and exits with code 2, without a traceback.
    """


class ContractError(RuntimeError):
    """A model broke the contract of `Recommender`: for example, its answer contains an item that is not allowed."""
