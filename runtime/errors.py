"""The errors that a user can mend."""


class UserError(Exception):
    """Bad input. The message says what came, what is allowed and what to do, in one line."""

    status = 2  # of the command that it ends


class BoundError(UserError):
    """A result beyond the bound that the user set."""

    status = 1
