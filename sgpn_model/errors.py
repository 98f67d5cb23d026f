"""The error whose message is meant for the user: what was wrong, in which file or key, and what to do."""


class UserError(Exception):
    """Something that the user can mend. The command line prints its message alone; any other error is a bug."""
