"""The two ways in which a run can end early."""


class UserError(ValueError):
    """Bad input: one clear sentence that names the field, the value and the way out."""


class RunFailed(RuntimeError):
    """A run cannot go on (NaN loss, out of memory, full disk); finished rounds stay readable."""
