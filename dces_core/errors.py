"""The two ways in which a run can end early."""


class UserError(ValueError):
    """Bad input: one clear sentence that names the field, the value and the way out."""


def quoted(value: object, longest: int = 200) -> str:
    """A value as a sentence shows it: its repr, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= longest else f"{text[:longest]}..."


def reason_of(error: Exception, longest: int = 200) -> str:
    """What an error says in a sentence: one line, without the path that it may name."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return " ".join(text.split())[:longest]


class RunFailed(RuntimeError):
    """A run cannot go on (NaN loss, out of memory, full disk); finished rounds stay readable."""


class NotFinite(RunFailed):
    """A NaN or an infinite number where a run cannot go on: what it is, and what to change."""

    def __init__(self, what: str, change: str) -> None:
        super().__init__(f"{what}; {change}.")
        self.what, self.change = what, change
