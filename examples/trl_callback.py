"""DCES as a callback of transformers' Trainer, TRL's SFTTrainer included: after each epoch the training set is curated anew.

    trainer = SFTTrainer(model=..., train_dataset=Dataset.from_list(rows), callbacks=[Curation(pool_of, n=500)])

`pool_of(model)` writes a pool with the model as it is: rows with `prompt` and `text`, better also `logprob`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import dces_core

Rows = list[dict[str, Any]]


class Curation(TrainerCallback):  # type: ignore[misc]
    """Asks for a pool at the end of an epoch and leaves what an arm chooses in `rows`, for the next call of `train`.

    `more` goes to `dces_core.curate`: arm, model, reference, settings. The feedback loop's state lies in the trainer's output folder.
    """

    def __init__(self, pool_of: Callable[[Any], Rows], n: int, **more: Any) -> None:
        self.pool_of, self.n, self.more = pool_of, n, more
        self.rows: Rows = []
        self.reports: list[dict[str, Any]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """One DCES step on what the model writes now."""
        where = Path(args.output_dir)
        where.mkdir(parents=True, exist_ok=True)
        found = dces_core.curate(self.pool_of(model), self.n, state=where / "dces-state.json", **self.more)
        self.rows = found.selected.select("prompt", "text").to_dicts()
        self.reports.append(found.report)
