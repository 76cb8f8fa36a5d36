"""The one exception of users' mistakes."""


class UserError(ValueError):
    """A mistake in what a user gave: the message names what, where, and the way out.

    The command line prints it as one line on stderr and exits with code 2; it never shows a traceback.
    """
