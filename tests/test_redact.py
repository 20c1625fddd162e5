"""Secrets of the environment and the run directory: none is found there, whatever happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kit import fake_rounds_here, fake_rounds_in_workers, make_config, wait_for
from small import attempt, small_run

from dces_core import launch, redact
from dces_core.events import Events
from dces_core.store import Run

SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKl",
    "DCES_SECRET": "a secret of many words",
    "SOME_API_KEY": 'k"e\\y-0123456789',
    "DB_PASSWORD": "hunter2hunter2",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DCES_SECRET_FILE", "a/path/of/no/secrecy")
    monkeypatch.setenv("SHORT_KEY", "small")


def found_in(folder: Path) -> list[str]:
    """Files that hold a secret, as it is or as JSON writes it."""
    forms = [form.encode() for value in SECRETS.values() for form in (value, value.replace("\\", "\\\\").replace('"', '\\"'))]
    return [str(path) for path in folder.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in forms)]


def test_redact() -> None:
    assert redact.redact("x hf_AbCdEfGhIjKl y") == "x [HF_TOKEN] y"
    assert redact.redact("a/path/of/no/secrecy small") == "a/path/of/no/secrecy small"
    assert redact.redacted({"a": ["hunter2hunter2", 3, None], "b": ("x",)}) == {"a": ["[DB_PASSWORD]", 3, None], "b": ["x"]}


def test_a_longer_secret_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER_TOKEN", "hf_AbCdEfGhIjKl-and-more")
    assert redact.redact("hf_AbCdEfGhIjKl-and-more") == "[OUTER_TOKEN]"


@pytest.mark.parametrize("name", ["HF_TOKEN", "api_key", "AWS_SECRET", "X_TOKENS", "KEY", "MY_PASSWORD", "A_CREDENTIALS"])
def test_names_of_secrets(name: str) -> None:
    assert redact.NAMES.search(name)


@pytest.mark.parametrize("name", ["DCES_SECRET_FILE", "MONKEY", "KEYBOARD", "TOKENIZERS_PARALLELISM", "PATH", "SSH_KEY_PATH"])
def test_other_names(name: str) -> None:
    assert not redact.NAMES.search(name)


def test_a_run_that_ends_well(tmp_path: Path) -> None:
    run = small_run(tmp_path, rounds=1, arms=["plain"])
    assert attempt(run) == "done" and found_in(tmp_path) == []


def test_a_run_that_fails_with_its_secrets_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(run: Run, events: Events) -> None:
        events.note(f"asking with {SECRETS['HF_TOKEN']}", header=[SECRETS["SOME_API_KEY"]])
        raise RuntimeError("x" * 290 + " ".join(SECRETS.values()))

    fake_rounds_here(monkeypatch, advance)
    run = small_run(tmp_path)
    assert attempt(run) == "failed" and found_in(tmp_path) == []
    log = run.log_path.read_text()
    assert "RuntimeError" in log and "[HF_TOKEN]" in log and "[SOME_API_KEY]" in log
    assert "[HF_TOKEN]" in run.events_path.read_text()
    assert all(value[:8] not in str(run.status()) for value in SECRETS.values()), "a message that is cut must not end in half a secret"


def test_what_a_worker_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own: its stdout and stderr are log.txt."""
    fake_rounds_in_workers(monkeypatch, tmp_path, "done")
    monkeypatch.setenv("FAKE_ROUNDS", f"said {SECRETS['HF_TOKEN']}")
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    run = launch.launch(make_config(tmp_path))
    wait_for(lambda: launch.state(run) in launch.FINAL)
    assert launch.state(run) == "done", run.log_tail()
    assert "advance said [HF_TOKEN]" in run.log_path.read_text() and found_in(run.path) == []


def test_streams(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    redact.guard_streams()
    print("hunter2hunter2")
    print("hunter2hunter2", file=sys.stderr, flush=True)
    assert capsys.readouterr() == ("[DB_PASSWORD]\n", "[DB_PASSWORD]\n")


def test_only_the_owner_may_look_into_a_run(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    assert run.path.stat().st_mode & 0o777 == 0o700
