"""Who may see the dashboard. On this machine alone: everybody. Elsewhere: who knows the secret, or has logged in (SECURITY.md)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
import threading
import time
from collections import deque
from pathlib import Path

import streamlit as st

from dces_core.errors import UserError

SHORTEST = 16  # characters of a secret
LONGEST_BYTES = 4096
TRIES = 5  # wrong answers of one session
TRIES_OF_ALL = 30  # wrong answers of all sessions within WINDOW_S
WINDOW_S = 300.0
DELAY_S = 1.0  # before a wrong answer is called wrong
HOW = (
    "This dashboard listens beyond this machine, so it needs a secret. Whoever runs it: put at least 16 characters into the environment "
    "variable DCES_SECRET, or the path of a file with them into DCES_SECRET_FILE, and start it again; or serve it on 127.0.0.1 only."
)

_wrong: deque[float] = deque()
_lock = threading.Lock()


def admit() -> None:
    """Return where this session may go on; else show why not, or ask for the secret, and end the page's run."""
    wanted, fault = None, ""
    try:
        wanted = secret()
    except UserError as error:
        fault = str(error)
    if not fault and _may_enter(wanted):
        return
    with st.container(horizontal_alignment="center"), st.container(width=460, key="door"):
        st.title("DCES Lab", anchor=False)
        try:
            if fault or not (wanted or login()):
                raise UserError(fault or HOW)
            _doors(wanted)
        except UserError as error:
            from dces_core.ui import state  # reads runs: a page that opens at once does not wait for it

            state.problem(str(error))
    st.stop()


def _may_enter(wanted: str | None) -> bool:
    if not wanted and not login() and is_loopback(address()):
        return True
    return logged_in() or bool(wanted and hmac.compare_digest(str(st.session_state.get("admitted", "")), _proof(wanted)))


def address() -> str | None:
    """Where the server listens; None: on every interface."""
    return st.get_option("server.address")  # type: ignore[no-any-return]


def is_loopback(where: str | None) -> bool:
    """Whether only this machine reaches the address. A name other than localhost counts as reached by others."""
    try:
        return where == "localhost" or ipaddress.ip_address(where or "0.0.0.0").is_loopback
    except ValueError:
        return False


def secret() -> str | None:
    """The secret of $DCES_SECRET, or of the file $DCES_SECRET_FILE; None where neither is set.

    Raises UserError where it is too short, or where the file cannot be read or can be read by others.
    """
    value, path = os.environ.get("DCES_SECRET"), os.environ.get("DCES_SECRET_FILE")
    if value is None and path:
        value = _of_file(Path(path))
    if value is None:
        return None
    if len(value.strip()) < SHORTEST:
        raise UserError(f"DCES_SECRET has fewer than {SHORTEST} characters; set a longer one and start the dashboard again.")
    return value.strip()


def login() -> bool:
    """Whether Streamlit's own login is set up (section [auth] of .streamlit/secrets.toml)."""
    return "is_logged_in" in st.user


def logged_in() -> bool:
    """Whether this visitor has logged in there."""
    return login() and st.user["is_logged_in"] is True


def _of_file(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UserError("the file of DCES_SECRET_FILE can be read by others; take their rights away (chmod 600).")
        with path.open("rb") as file:
            return file.read(LONGEST_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        raise UserError("the file of DCES_SECRET_FILE cannot be read as text; check the path and its rights.") from None


def _doors(wanted: str | None) -> None:
    """The form for the secret, and the button of Streamlit's login."""
    if login():
        st.button("Log in", icon=":material/login:", on_click=st.login, key="login")
    if not wanted:
        return
    with st.form("secret", clear_on_submit=True):
        given = st.text_input(
            "Secret", type="password", max_chars=LONGEST_BYTES, key="given", placeholder="Whoever runs this dashboard knows it"
        )
        sent = st.form_submit_button("Open", type="primary", key="open-secret")
    if sent and _right(given, wanted):
        st.session_state["admitted"] = _proof(wanted)
        st.rerun()


def _right(given: str, wanted: str) -> bool:
    """Whether the secret is right. Raises UserError where it is wrong, or where too many were."""
    tried = st.session_state.setdefault("tried", 0)
    if tried >= TRIES:
        raise UserError("Too many wrong secrets: this tab gets no further try.")
    with _lock:
        while _wrong and _wrong[0] < time.monotonic() - WINDOW_S:
            _wrong.popleft()
        if len(_wrong) >= TRIES_OF_ALL:
            raise UserError(f"Too many wrong secrets were tried here; try again in {WINDOW_S / 60:.0f} minutes.")
        if hmac.compare_digest(given.strip().encode(), wanted.encode()):
            return True
        _wrong.append(time.monotonic())
        st.session_state["tried"] = tried + 1
    time.sleep(DELAY_S)
    raise UserError("That is not the secret.")


def _proof(wanted: str) -> str:
    """What a session keeps once it has shown the secret; another secret makes it void."""
    return hashlib.sha256(b"dces" + wanted.encode()).hexdigest()
