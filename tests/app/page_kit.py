"""What page tests share: the pages, and everything a page says."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

PAGES = ("start", "launch", "watch", "trajectories", "clusters", "feedback", "point", "generations", "case", "ask", "runs")


def shown(app: AppTest) -> str:
    """Everything on the page as one string: HTML of this project, texts, captions, code, titles."""
    kinds = ("html", "text", "caption", "code", "title", "subheader", "error")
    return "\n".join(str(getattr(element, "value", getattr(element, "body", ""))) for kind in kinds for element in app.get(kind))
