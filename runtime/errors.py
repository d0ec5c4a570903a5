"""The errors that a user can mend."""


class UserError(Exception):
    """Bad input. The message names the input, the allowed values, and what to do, in one line.

    Examples:
        >>> edge_sampler.Settings(nfe=0)
        Traceback (most recent call last):
        edge_sampler.runtime.errors.UserError: nfe is 0; it must be at least 1
    """

    status = 2  # of the command that it ends


class BoundError(UserError):
    """A result beyond the bound that the user set, such as ``max_error``.

    Examples:
        >>> from edge_sampler.runtime.errors import BoundError
        >>> BoundError.status, edge_sampler.UserError.status  # the exit status of a command that one ends
        (1, 2)
    """

    status = 1
