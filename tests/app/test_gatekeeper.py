"""Who gets past the gatekeeper: loopback, another address with and without a secret, Streamlit's own login."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from page_kit import PAGES, shown
from streamlit.testing.v1 import AppTest

from dces_core import launch
from dces_core.errors import UserError
from dces_core.ui import gatekeeper

SECRET = "correct horse battery staple"
Open = Callable[..., AppTest]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("DCES_SECRET", "DCES_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gatekeeper, "DELAY_S", 0.0)
    gatekeeper._wrong.clear()
    yield
    gatekeeper._wrong.clear()


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    """The server listens on every interface."""
    monkeypatch.setattr(gatekeeper, "address", lambda: "0.0.0.0")


def tried(app: AppTest, text: str) -> AppTest:
    app.text_input(key="given").set_value(text)
    next(one for one in app.button if one.form_id == "secret").click().run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def is_open(app: AppTest) -> bool:
    """Whether a page of the dashboard is there: the sidebar's picker comes with every one."""
    return any(box.key == "pick-run" for box in app.selectbox)


@pytest.mark.parametrize(
    ("where", "here"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
        (None, False), ("", False), ("0.0.0.0", False), ("::", False), ("10.0.0.4", False), ("lab.example", False), ("unix:///x", False),
    ],
)  # fmt: skip
def test_loopback(where: str | None, here: bool) -> None:
    assert gatekeeper.is_loopback(where) == here


def test_the_shipped_configuration_is_loopback() -> None:
    assert gatekeeper.address() == "127.0.0.1"


def test_on_loopback_nothing_is_asked(runs: Path, open_page: Open) -> None:
    assert is_open(open_page("start"))


@pytest.mark.parametrize("page", PAGES)
def test_elsewhere_without_a_secret_every_page_only_explains(outside: None, open_page: Open, page: str) -> None:
    app = open_page(page)
    assert not is_open(app) and "DCES_SECRET" in shown(app) and "at least 16 characters" in shown(app)
    assert not app.button and not app.text_input and not app.text_area


def test_the_secret_opens_and_is_kept(outside: None, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_SECRET", SECRET)
    app = open_page("launch")
    assert not is_open(app) and len(app.button) == 1
    tried(app, "wrong horse battery staple")
    assert not is_open(app) and "not the secret" in shown(app)
    assert is_open(tried(app, SECRET)) and is_open(app.run())
    monkeypatch.setenv("DCES_SECRET", "another secret of the same house")
    assert not is_open(app.run()), "a changed secret must be asked for again"


def test_a_secret_is_asked_for_on_loopback_too(runs: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server behind a proxy listens on loopback, and others reach it all the same."""
    monkeypatch.setenv("DCES_SECRET", SECRET)
    assert not is_open(open_page("start"))


def test_a_session_has_few_tries(outside: None, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_SECRET", SECRET)
    app = open_page("start")
    for number in range(gatekeeper.TRIES):
        tried(app, f"wrong {number}")
    assert not is_open(tried(app, SECRET)) and "no further try" in shown(app)


def test_all_sessions_together_have_few_tries(outside: None, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_SECRET", SECRET)
    monkeypatch.setattr(gatekeeper, "TRIES_OF_ALL", 2)
    for number in range(2):
        tried(open_page("start"), f"wrong {number}")
    app = tried(open_page("start"), SECRET)
    assert not is_open(app) and "try again in 5 minutes" in shown(app)
    monkeypatch.setattr(gatekeeper, "WINDOW_S", -1.0)
    assert is_open(tried(app, SECRET))


def test_a_wrong_secret_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(gatekeeper, "DELAY_S", 1.0)
    monkeypatch.setattr(gatekeeper.time, "sleep", slept.append)
    monkeypatch.setattr(st, "session_state", {})
    with pytest.raises(UserError, match="not the secret"):
        gatekeeper._right("wrong", SECRET)
    assert gatekeeper._right(f" {SECRET} ", SECRET) and slept == [1.0]


def test_secret_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    monkeypatch.setenv("DCES_SECRET_FILE", str(path))
    with pytest.raises(UserError, match="cannot be read as text"):
        gatekeeper.secret()
    path.write_text(f"{SECRET}\n")
    path.chmod(0o640)
    with pytest.raises(UserError, match="can be read by others"):
        gatekeeper.secret()
    path.chmod(0o600)
    assert gatekeeper.secret() == SECRET
    monkeypatch.setenv("DCES_SECRET", "the variable comes first")
    assert gatekeeper.secret() == "the variable comes first"


@pytest.mark.parametrize("short", ["", "fifteen letters", "   fifteen letters   "])
def test_a_short_secret_opens_nothing(outside: None, open_page: Open, monkeypatch: pytest.MonkeyPatch, short: str) -> None:
    monkeypatch.setenv("DCES_SECRET", short)
    app = open_page("start")
    assert not is_open(app) and "fewer than 16" in shown(app) and not app.text_input


@pytest.mark.parametrize(
    ("user", "opens"), [({"is_logged_in": True}, True), ({"is_logged_in": False}, False), ({"is_logged_in": "yes"}, False)]
)
def test_streamlits_own_login(
    outside: None, open_page: Open, monkeypatch: pytest.MonkeyPatch, user: dict[str, object], opens: bool
) -> None:
    monkeypatch.setattr(st, "user", user)
    app = open_page("start")
    assert is_open(app) == opens
    assert opens or [one.key for one in app.button] == ["login"]


def test_login_and_secret_together(outside: None, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_SECRET", SECRET)
    monkeypatch.setattr(st, "user", {"is_logged_in": False})
    app = open_page("start")
    assert next(one.key for one in app.button) == "login"
    assert is_open(tried(app, SECRET))


def test_workers_do_not_get_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCES_SECRET", SECRET)
    monkeypatch.setenv("DCES_SECRET_FILE", "x")
    monkeypatch.setenv("DCES_OTHER", "y")
    given: list[dict[str, str]] = []

    class Process:
        def __init__(self, command: list[str], *, env: dict[str, str], **more: object) -> None:
            given.append(env)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    launch._spawn(["x"], tmp_path / "log")
    assert "DCES_OTHER" in given[0] and not {"DCES_SECRET", "DCES_SECRET_FILE"} & given[0].keys()
