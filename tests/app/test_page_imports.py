"""Opening every page loads nothing heavy into the web process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from page_kit import PAGES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "umap", "numba", "sklearn", "hdbscan", "scipy", "sentence_transformers", "accelerate", "matplotlib")
SCRIPT = """
import json, sys
sys.path.insert(0, "tests/app")
from pathlib import Path
from streamlit.testing.v1 import AppTest
from make_run import make_run
make_run(Path(sys.argv[1]))
opened = []
for page in sorted(Path("pages").glob("*.py")):
    app = AppTest.from_file(str(Path("app.py").absolute()), default_timeout=60)
    app.query_params["run"] = "synthetic-1"
    app.switch_page(f"pages/{page.name}").run()
    assert not app.exception, (page, app.exception)
    opened.append(page.stem)
print(json.dumps({"opened": opened, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def test_pages_load_nothing_heavy(tmp_path: Path) -> None:
    env = {**os.environ, "DCES_RUNS": str(tmp_path / "runs"), "DCES_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "runs")], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said["opened"]) >= set(PAGES)
    assert not set(HEAVY) & set(said["modules"])
