"""Page tests: an empty place for runs, no shipped run, and a way to open a page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

if TYPE_CHECKING:
    from dces_core.study_store import Output

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs directory; nothing recorded, nothing in the cache."""
    from dces_core import store, study_store

    root = tmp_path / "runs"
    root.mkdir()
    monkeypatch.setenv("DCES_RUNS", str(root))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    for module in (store, study_store):
        monkeypatch.setattr(module, "recorded_root", lambda: tmp_path / "recorded")
    st.cache_data.clear()
    return root


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """A study of the fake engine, two rounds: plain and dces of seeds 0 and 1, random of seed 1. To be copied, not changed."""
    from make_study import make_study

    folder = tmp_path_factory.mktemp("study")
    return make_study(folder / "made", folder / "out")


@pytest.fixture
def open_page() -> Callable[..., AppTest]:
    """Open a page with query parameters, as a deep link does."""

    def opened(name: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
        for key, value in query.items():
            app.query_params[key] = value
        app.switch_page(f"pages/{name}.py")
        app.run()
        assert not app.exception, [e.value for e in app.exception]
        return app

    return opened
