"""Real servers: the shipped configuration answers on loopback alone; one on every interface asks for the secret."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Subprotocol

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@contextmanager
def served(folder: Path, *options: str, **variables: str) -> Iterator[int]:
    """`streamlit run app.py` with these options; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port), "--server.headless", "true", *options]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DCES_", "STREAMLIT_"))}
    env |= {"DCES_RUNS": str(folder / "runs"), "DCES_CACHE": str(folder / "cache"), **variables}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not answers("127.0.0.1", port):
            assert process.poll() is None and time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(15)


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def listening(port: int) -> set[str]:
    """Addresses on which anything listens at this port."""
    return {entry.laddr.ip for entry in psutil.net_connections("inet") if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port}


def said(port: int) -> str:
    """Everything that a first visit is sent, as text."""
    with connect(f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=[Subprotocol("streamlit")], max_size=None, proxy=None) as tab:
        message = BackMsg()
        message.rerun_script.query_string = ""
        tab.send(message.SerializeToString())
        parts = []
        while True:
            one = ForwardMsg.FromString(tab.recv(timeout=60, decode=False))
            parts.append(str(one))
            if one.WhichOneof("type") == "script_finished" and one.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                return "\n".join(parts)


def test_by_default_only_this_machine_is_answered(tmp_path: Path) -> None:
    with served(tmp_path) as port:
        assert listening(port) == {"127.0.0.1"}
        others = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == socket.AF_INET}
        assert not any(answers(host, port) for host in {*others, "127.0.0.2"} - {"127.0.0.1"})
        assert "pick-run" in said(port) and "DCES_SECRET" not in said(port)


def test_on_every_interface_without_a_secret_nothing_is_shown(tmp_path: Path) -> None:
    with served(tmp_path, "--server.address", "0.0.0.0") as port:
        words = said(port)
        assert listening(port) & {"0.0.0.0", "::"} and "DCES_SECRET" in words
        assert "pick-run" not in words and "Trajectories" not in words


def test_on_every_interface_the_secret_is_asked_for(tmp_path: Path) -> None:
    with served(tmp_path, "--server.address", "0.0.0.0", DCES_SECRET="a secret of many words") as port:
        words = said(port)
        assert "given" in words and "pick-run" not in words and "a secret of many words" not in words
