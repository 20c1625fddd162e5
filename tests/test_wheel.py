"""A wheel built from this checkout does a run from anywhere, without the checkout and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def call(arguments: list[str], cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_wheel_runs_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    call(["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(ROOT)], elsewhere)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert "dces_core/_data/recipes/smoke.toml" in names and "dces_core/ui/style.css" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    here = {"PYTHONPATH": str(site), "DCES_RUNS": str(elsewhere / "runs"), "DCES_CACHE": str(tmp_path / "cache")}
    assert Path(call(["-c", "import dces_core; print(dces_core.__file__)"], elsewhere, **here).strip()).is_relative_to(site)
    out = call(["-m", "dces_core.cli", "run", "smoke", "--set", "rounds=1"], elsewhere, **here)
    assert (Path(out.splitlines()[-1]) / "run.json").is_file()
    shown = call(["-m", "dces_core.cli", "show", out.splitlines()[-1], "--metrics", "--format", "csv"], elsewhere, **here)
    assert {"plain", "dces"} == {line.split(",")[0] for line in shown.splitlines()[1:]}
