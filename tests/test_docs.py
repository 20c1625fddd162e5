"""The documents say what the program does: every documented command is executed, every generated or listed fact compared."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from dces_core import cli, config, data, reference, settings
from dces_core.arms import ARMS, Arm
from dces_core.config import RunConfig
from dces_core.metrics.degradation import DIRECTION, TITLE
from dces_core.section import Section

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG = bool(os.environ.get("DCES_DOCS_LONG"))
BLOCK = re.compile(r"(<!-- long -->\n)?^```console( long)?\n(.*?)^```$", re.M | re.S)
ONLY_LONG = ("make ", "streamlit ", "git clone", "pip install")
SERVERS = ("make demo", "streamlit run")
FIRST = "dces run smoke --out runs/first"  # every page may look at this run
SHORT_LIMIT_S, LONG_LIMIT_S = 120, 3600


@dataclass(frozen=True)
class Command:
    page: str
    line: str
    long: bool


def documented() -> list[Command]:
    """Every `$ ` line of every console block, in order."""
    found = []
    for page in PAGES:
        for before, long, body in BLOCK.findall(page.read_text(encoding="utf-8")):
            lines = [line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ ")]
            found += [Command(page.name, line, bool(before or long)) for line in lines]
    return found


COMMANDS = documented()
SHORT_PAGES = sorted({command.page for command in COMMANDS if not command.long})


@dataclass(frozen=True)
class Shell:
    """A directory with an empty runs/ and a `dces` that is this checkout's."""

    home: Path
    own_cache: bool = False  # then nothing waits for a device that a run outside holds

    def run(self, line: str, cwd: Path | None = None, limit_s: float = SHORT_LIMIT_S) -> str:
        done = subprocess.run(
            ["bash", "-c", line], cwd=cwd or self.home, env=self.env(), capture_output=True, text=True, errors="replace",
            timeout=limit_s, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != "DCES_DOCS_LONG"}
        path = os.pathsep.join([str(self.home / "bin"), str(Path(sys.executable).parent), kept["PATH"]])
        kept |= {"DCES_CACHE": str(self.home / "cache")} if self.own_cache else {}
        return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "DCES_RUNS": str(self.home / "runs")}


def make_shell(home: Path, own_cache: bool = False) -> Shell:
    (home / "bin").mkdir()
    dces = home / "bin" / "dces"
    dces.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dces_core.cli "$@"\n', encoding="utf-8")
    dces.chmod(0o755)
    for name in ("data", "examples"):
        (home / name).symlink_to(ROOT / name)
    return Shell(home, own_cache)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = make_shell(tmp_path_factory.mktemp("docs"), own_cache=True)
    assert made.run(FIRST).splitlines()[-1] == str(made.home / "runs" / "first")
    return made


@pytest.fixture(scope="module")
def long_shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return make_shell(tmp_path_factory.mktemp("long"))


@pytest.mark.slow
@pytest.mark.parametrize("page", SHORT_PAGES)
def test_every_short_command_runs(shell: Shell, page: str) -> None:
    for command in COMMANDS:
        if command.page == page and not command.long and command.line != FIRST:
            shell.run(command.line)


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="make docs-check runs these")
@pytest.mark.parametrize("line", list(dict.fromkeys(command.line for command in COMMANDS if command.long)))
def test_every_long_command_runs(long_shell: Shell, line: str) -> None:
    if line.startswith(SERVERS):
        serve(long_shell, line)
    else:
        long_shell.run(line, ROOT if line.startswith(ONLY_LONG) else long_shell.home, LONG_LIMIT_S)


def serve(shell: Shell, line: str) -> None:
    """A command that does not end has worked once its dashboard answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**shell.env(), "PORT": str(port), "STREAMLIT_SERVER_PORT": str(port)}
    process = subprocess.Popen(["bash", "-c", line], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + LONG_LIMIT_S
        while not answers(port):
            assert process.poll() is None, f"{line} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{line} serves nothing"
            time.sleep(0.5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).close()
        return True
    except OSError:
        return False


def test_commands_that_install_or_serve_are_long() -> None:
    assert len(COMMANDS) > 15
    assert FIRST in [command.line for command in COMMANDS if not command.long]
    for command in COMMANDS:
        assert command.long or command.line.startswith(("dces ", "python examples/")), f"{command.page}: {command.line}"
        assert command.long or not command.line.startswith(("dces run ", "dces launch ")) or " smoke" in command.line, command.line


def test_every_verb_is_in_the_readme_and_on_the_run_page() -> None:
    verbs = set(cli._parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]
    for name in ("README.md", "docs/run.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert {verb for verb in verbs if f"dces {verb}" not in text} == set(), name


def test_settings_page_is_what_the_settings_say() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        settings.main()
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == out.getvalue(), "run: make docs"
    for name, section in sections().items():
        for field in section.model_fields:
            assert (name == "" and field in sections()) or f"\n| `{field}` | " in out.getvalue()


def test_the_api_page_is_what_the_docstrings_say() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        reference.main()
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == out.getvalue(), "run: make docs"
    assert " at 0x" not in out.getvalue()


def sections() -> dict[str, type[Section]]:
    """Sections by name; "" is the top level."""
    own = {name: type(info.default) for name, info in RunConfig.model_fields.items() if isinstance(info.default, Section)}
    return {"": RunConfig, **own}


def test_settings_that_the_pages_name_exist() -> None:
    known, checked = sections(), 0
    for page in PAGES:
        for section, field in re.findall(r"`([a-z]+)\.([a-z_0-9]+)\b(?!\()", page.read_text(encoding="utf-8")):
            if section in known and field not in ("py", "json"):
                assert (section == "data" and field == "tests") or field in known[section].model_fields, f"{page.name}: {section}.{field}"
                checked += 1
    assert checked > 40


def test_every_choice_of_ours_is_on_the_method_page() -> None:
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    for name, section in sections().items():
        for field, info in section.model_fields.items():
            if (info.description or "").endswith("Ours."):
                assert f"`{name}.{field}`" in text, f"docs/method.md does not name {name}.{field}"


def arm_row(arm: Arm) -> str:
    word = {True: "yes", False: "no"}
    edit = arm.edit if arm.edit == "none" else f"{arm.edit}, {arm.edits}"
    cells = (
        f"`{arm.name}`", arm.title, arm.decode, word[arm.gate], arm.select, edit, word[arm.filter], word[arm.dynamic], word[arm.truncates],
        f"{arm.real:g}", word[arm.trains], word[arm.ranked], arm.source,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_arms_table_is_the_table_of_arms() -> None:
    part = (ROOT / "docs/method.md").read_text(encoding="utf-8").split("## The arms")[1].split("\n\n")[1]
    assert part.splitlines()[2:] == [arm_row(arm) for arm in ARMS.values()]


def test_metrics_page_has_every_metric_and_its_direction() -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ", text, re.M)
    assert sorted(name for name, _ in rows) == sorted(TITLE)
    assert dict(rows) == DIRECTION


def test_data_page_has_the_limits() -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    limits = f"{data.MAX_FILE_BYTES // 2**20} MiB a file", f"{data.MAX_ROWS:,} rows", f"{data.MAX_TEXT_BYTES // 2**20} MiB a line"
    for words in (*limits, f"{data.BREAK_WORDS} to {data.BLOCK_WORDS} words"):
        assert words in text


def test_recipes_on_the_pages_are_valid() -> None:
    blocks = [block for page in PAGES for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)]
    assert blocks
    for block in blocks:
        config.parse(tomllib.loads(block))


def test_links_lead_somewhere() -> None:
    shots = any((ROOT / "data" / "recorded").glob("*/run.json"))  # pictures are made from the recorded run
    for page in PAGES:
        prose = re.sub(r"^ {4}.*$", "", page.read_text(encoding="utf-8"), flags=re.M)  # indented: a model's text, as code
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
            if "://" not in target and (shots or not target.endswith(".png")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
