"""A finished study of the fake engine, in a second or two: for tests of pages that read studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from small import small_config

from dces_core import launch
from dces_core.study import Work, do_study, load_study
from dces_core.study_store import Output


def make_study(folder: Path, out: Path, only: tuple[str, ...] = (), settings: dict[str, Any] | None = None, **fields: Any) -> Output:
    """Write a STUDY.toml into `folder` and its units into `out`. `only`: patterns ARM/SEED; `settings`: over those of tests/small.py."""
    folder.mkdir(parents=True, exist_ok=True)
    config = small_config(folder, **(settings or {})).model_dump(mode="json")
    (folder / "own.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    body = {
        "name": "small",
        "recipe": "own.toml",
        "arms": ["plain", "random", "dces"],
        "seeds": [0, 1],
        "seeds_of": {"random": [1]},
        **fields,
    }
    (folder / "study.toml").write_text(tomli_w.dumps(body), encoding="utf-8")
    work = Work(load_study(str(folder / "study.toml")), Output(out), mixed_cpus=False, keep_runs=False, say=lambda text: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCES_RUNS", str(folder / "workshop"))
        patch.setattr(launch, "device_lock", lambda device: folder / f"{device}.lock")
        assert do_study(work, list(only)) == "done"
    return work.output
