"""The audit finds another version, an unknown licence and a known weakness, and skips what it cannot ask."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pins(audit: ModuleType) -> None:
    assert audit.pins("# x==1\na-b==1.0\nc==2 ; python_version\nd>=3\n") == {"a-b": "1.0", "c": "2"}
    assert len(audit.pins((ROOT / "constraints.txt").read_text())) > 50


def test_versions(audit: ModuleType) -> None:
    here = metadata.version("numpy")
    assert audit.differing({"numpy": here, "no-such-package-here": "1"}) == []
    assert audit.differing({"numpy": "0.1"}) == [f"numpy is {here}, constraints.txt has 0.1"]


def test_licences(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit.without_licence(["numpy", "pytest", "no-such-package-here"]) == []
    monkeypatch.setattr(audit, "licence_of", lambda package: "all rights reserved; limited")
    assert audit.without_licence(["numpy"]) == ["numpy: no known licence"]


@pytest.mark.parametrize(
    ("answer", "flaws", "reason"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X-1"}]}]}', ["a 1: X-1"], None),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', [], None),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', [], "knows none"),
        ("", [], "cannot be reached"),
    ],
)
def test_weaknesses(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: str, flaws: list[str], reason: str | None) -> None:
    monkeypatch.setattr(audit.util, "find_spec", lambda name: object())
    monkeypatch.setattr(audit.subprocess, "run", lambda *words, **more: subprocess.CompletedProcess(words, 0, answer, ""))
    found, skipped = audit.weaknesses()
    assert found == flaws and (skipped is None if reason is None else reason in str(skipped))


def test_a_missing_tool_is_said(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit.util, "find_spec", lambda name: None)
    monkeypatch.setattr(audit, "differing", lambda wanted: [])
    monkeypatch.setattr(audit, "without_licence", lambda names: [])
    assert audit.main() == 0 and "skipped: pip-audit is not installed" in capsys.readouterr().out
    monkeypatch.setattr(audit, "differing", lambda wanted: ["a is 2"])
    assert audit.main() == 1


def test_the_integration_script_audits() -> None:
    assert "make audit" in (ROOT / ".ci/run").read_text() and "\naudit:" in (ROOT / "Makefile").read_text()
    assert json.dumps("audit") in json.dumps((ROOT / "Makefile").read_text().split(".PHONY: ")[1].split("\n")[0].split())
