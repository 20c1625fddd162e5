"""Training and teacher-forced scoring: ours against TRL, and against one plain forward pass."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from typing import Any

import torch

from dces_core.bench import sides
from dces_core.bench.clock import PeakMemory, alternate
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row, skipped
from dces_core.config import Train
from dces_core.engines.base import Example
from dces_core.engines.teacher import batches
from dces_core.lab import Lab

UNIT = "tokens/s"


def tuning(plan: Plan) -> list[Row]:
    """One epoch over pairs of the training split: ours against TRL's SFTTrainer, both with the recipe's training settings."""
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        return [skipped("train", f"{' and '.join(missing)} not installed: pip install -c constraints.txt -e .[bench]")]
    with sides.open_lab(sides.settings(plan)) as lab, tempfile.TemporaryDirectory(prefix="dces-bench-") as folder:
        pairs, settings = sides.examples(lab, plan.pairs), lab.config.train

        def ours(repetition: int) -> int:
            lab.engine.train(pairs, settings, repetition)
            return _tokens(pairs)

        peer = _Trl(plan, lab, pairs, settings, folder)
        pair = alternate(ours, peer, plan.repeats, peer.prepare)
    note = f"{len(pairs)} pairs, batch {settings.batch_size}, {plan.precision} autocast, {settings.epochs} epoch"
    return [Row("train", pair.ours, pair.peer, pair.ratio, UNIT, pair.n, note)]


def scoring(plan: Plan) -> list[Row]:
    """Log-probability, entropy and top-1 of responses: ours against plain forward passes, in tokens/s and in memory."""
    with sides.open_lab(sides.settings(plan)) as lab:
        pairs = sides.examples(lab, plan.pairs)
        size = -(-len(pairs) // len(list(batches(pairs))))
        model = sides.peer_model(plan, sides.peer_type(plan))

        def ours(repetition: int) -> int:
            lab.engine.score(pairs)
            return _tokens(pairs)

        def peer(repetition: int) -> int:
            for start in range(0, len(pairs), size):
                plain_scores(model, pairs[start : start + size])
            return _tokens(pairs)

        pair = alternate(ours, peer, plan.repeats)
        with PeakMemory() as own:
            ours(0)
        with PeakMemory() as plain:
            peer(0)
    mine, theirs = own.above_bytes / 1e9, plain.above_bytes / 1e9
    return [
        Row("score", pair.ours, pair.peer, pair.ratio, UNIT, pair.n, f"{len(pairs)} responses; the peer in batches of {size}"),
        Row("score-memory", mine, theirs, mine / theirs if theirs else None, "GB", len(pairs), "peak above what was resident before"),
    ]


def _tokens(pairs: list[Example]) -> int:
    return sum(len(pair.prompt) + len(pair.response) for pair in pairs)


@torch.inference_mode()
def plain_scores(model: Any, pairs: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability, entropy and top-1 hit of all response tokens: logits of every position, then those that predict a response."""
    rows = [pair.prompt + pair.response for pair in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    wanted = torch.zeros_like(mask, dtype=torch.bool)
    for i, pair in enumerate(pairs):
        wanted[i, len(pair.prompt) - 1 : len(rows[i]) - 1] = True
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logprobs = logits[wanted].float().log_softmax(-1)
    target = ids.roll(-1, 1)[wanted]
    chosen = logprobs.gather(1, target.unsqueeze(1)).squeeze(1)
    return chosen, -(logprobs.exp() * logprobs).sum(-1), logprobs.argmax(-1) == target


class _Trl:
    """SFTTrainer on the same tokens, loss on the responses; a new trainer for each repetition, made before its time counts."""

    def __init__(self, plan: Plan, lab: Lab, pairs: list[Example], settings: Train, folder: str) -> None:
        self.plan, self.settings, self.folder, self.tokens = plan, settings, folder, _tokens(pairs)
        self.model = sides.peer_model(plan, torch.float32)
        self.tokenizer: Any = lab.engine.tokenizer  # type: ignore[attr-defined]
        self.rows = [
            {"input_ids": pair.prompt + pair.response, "completion_mask": [0] * len(pair.prompt) + [1] * len(pair.response)}
            for pair in pairs
        ]

    def prepare(self, repetition: int) -> None:
        """Make the trainer: the recipe's optimiser settings, no gradient checkpointing, nothing logged or saved."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # trl and datasets announce optional parts
            from datasets import Dataset
            from trl import SFTConfig, SFTTrainer

            options = SFTConfig(
                output_dir=self.folder, use_cpu=True, bf16=self.plan.precision == "bf16",
                per_device_train_batch_size=self.settings.batch_size,
                num_train_epochs=self.settings.epochs, learning_rate=self.settings.lr, lr_scheduler_type=self.settings.schedule,
                max_grad_norm=self.settings.max_grad_norm, weight_decay=self.settings.weight_decay, completion_only_loss=True,
                gradient_checkpointing=False, max_length=None, seed=repetition, report_to="none", save_strategy="no",
                logging_strategy="no", disable_tqdm=True, eos_token=self.tokenizer.eos_token,
                pad_token=self.tokenizer.pad_token or self.tokenizer.eos_token,
            )  # fmt: skip
            data = Dataset.from_list(self.rows)
            self.trainer = SFTTrainer(self.model, options, train_dataset=data, processing_class=self.tokenizer)

    def __call__(self, repetition: int) -> int:
        """Train; returns the real tokens."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the data loader has no device to pin memory for
            self.trainer.train()
        return self.tokens
