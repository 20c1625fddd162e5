"""The dashboard as a process of its own, and a visitor who speaks Streamlit's protocol, so that no browser's time is counted."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Subprotocol

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app.py"
POINTS = Path(__file__).with_name("ui_points.py")
FIGURES = ("plotly_chart", "echarts_chart", "vega_lite_chart", "deck_gl_json_chart")
PATIENCE_S = 120.0
POLL_S = 0.01
KEPT_RUNS = 2  # of the page, in which a browser keeps a large message, so that the server may name it in place of sending it


class Server:
    """`streamlit run` of a script, on a free port of this machine, over one folder of runs."""

    def __init__(self, script: Path, runs: Path, **variables: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(self.port), "--server.headless", "true"]
        env = {**os.environ, "DCES_RUNS": str(runs), "PYTHONPATH": str(ROOT), **variables}
        self.started = time.perf_counter()
        self.process = psutil.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> float:
        """Seconds from its start until it takes connections."""
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return time.perf_counter() - self.started
            except OSError:
                assert self.process.poll() is None, "the dashboard did not start"
                time.sleep(POLL_S)

    @property
    def cpu_s(self) -> float:
        """Processor seconds that it has used."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    @property
    def memory_bytes(self) -> int:
        """Resident memory."""
        return int(self.process.memory_info().rss)


@contextmanager
def serve(script: Path, runs: Path, **variables: str) -> Iterator[Server]:
    """A server that ends with the block."""
    server = Server(script, runs, **variables)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(15)


@dataclass
class Answer:
    """What the server sent for one run of a page or of a part of it."""

    seconds: float = 0.0  # until it said that the script has finished
    figure_s: float | None = None  # until the last figure was here
    figures: int = 0  # sent, not only named
    bytes: int = 0
    failures: list[str] = field(default_factory=list)
    timers: list[str] = field(default_factory=list)  # parts that the page wants to be run again and again


class Visitor:
    """One tab. It keeps what the server may refer back to, as a browser does."""

    def __init__(self, port: int, page: str, query: str) -> None:
        address = f"ws://127.0.0.1:{port}/_stcore/stream"
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(address, subprotocols=[Subprotocol("streamlit")], max_size=None, proxy=None))
        self._runs = 0
        self._known: dict[str, tuple[int, bool]] = {}  # hash -> in which run it came last, whether it is a figure
        self.beats: dict[str, float] = {}  # timers that the tab has now -> seconds between two beats
        self._state: dict[str, Any] = {"page_name": page, "query_string": query}
        self.opened = self._run()

    def close(self) -> None:
        """Close the tab."""
        self._open.close()

    def go(self, query: str) -> Answer:
        """The page with another address: what a click on a linked widget amounts to."""
        self._state["query_string"] = query
        return self._run()

    def tick(self, fragment: str) -> Answer:
        """One beat of a timer of the page."""
        return self._run(fragment_id=fragment, is_auto_rerun=True)

    def _run(self, **more: Any) -> Answer:
        answer, message = Answer(), BackMsg()
        for name, value in {**self._state, **more}.items():
            setattr(message.rerun_script, name, value)
        self._runs += not more
        self._known = {name: known for name, known in self._known.items() if self._runs - known[0] <= KEPT_RUNS}
        message.rerun_script.cached_message_hashes.extend(self._known)
        started = time.perf_counter()
        self._socket.send(message.SerializeToString())
        while not self._take(answer, started):
            pass
        assert not answer.failures, answer.failures
        return answer

    def _take(self, answer: Answer, started: float) -> bool:
        """Take one message; True when it was the last."""
        data = self._socket.recv(timeout=PATIENCE_S, decode=False)
        answer.seconds = time.perf_counter() - started
        answer.bytes += len(data)
        message = ForwardMsg.FromString(data)
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            figure = self._known[message.ref_hash][1]
            self._known[message.ref_hash] = (self._runs, figure)
        else:
            element = message.delta.new_element.WhichOneof("type")
            figure = element in FIGURES
            answer.figures += figure
            if element == "exception":
                answer.failures.append(message.delta.new_element.exception.type)
            if message.metadata.cacheable:
                self._known[message.hash] = (self._runs, figure)
        if figure:
            answer.figure_s = answer.seconds
        return self._control(message, answer)

    def _control(self, message: ForwardMsg, answer: Answer) -> bool:
        """What is not drawn: the page's identity, its timers, the end of the script (True)."""
        kind = message.WhichOneof("type")
        if kind == "auto_rerun":
            answer.timers.append(message.auto_rerun.fragment_id)
            self.beats[message.auto_rerun.fragment_id] = message.auto_rerun.interval
        elif kind == "navigation":
            self._state["page_script_hash"] = message.navigation.page_script_hash
        elif kind == "new_session":
            answer.timers.clear()
            if not message.metadata.run.fragment_ids:
                self.beats.clear()
        return kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN
