"""What page tests share: the pages, and everything a page says."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from dces_core.stage import Stage, sha256_of, write_sealed

OF_A_RUN = ("watch", "trajectories", "clusters", "feedback", "point", "generations", "case", "ask")
PAGES = ("start", "launch", "curate", "tune", "cost", *OF_A_RUN, "diagnose", "runs")


def shown(app: AppTest) -> str:
    """Everything on the page as one string: HTML of this project, texts, captions, code, titles."""
    kinds = ("html", "text", "caption", "code", "title", "subheader", "error")
    return "\n".join(str(getattr(element, "value", getattr(element, "body", ""))) for kind in kinds for element in app.get(kind))


def reseal(stage: Stage) -> None:
    """A finished stage's files were changed by a test: they count as written like this."""
    done = stage.done
    assert done is not None
    files = {
        name: {**entry, "bytes": stage.file(name).stat().st_size, "sha256": sha256_of(stage.file(name))}
        for name, entry in done["files"].items()
    }
    write_sealed(stage.file("_done.json"), {**done, "files": files})
