"""The model of transformers on several processes: whole batches of rows by rank, and training by FSDP2.

Sampling and scoring compute the same batches as one process does, so their results are the same to the last bit. A training batch is
split by rank; its gradient is the same sum in another order.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from dces_core.config import Edit, Generate, RunConfig, Train
from dces_core.engines import trainer
from dces_core.engines.base import Example, Floats, Generation, Proposal, TokenScores, Which, require_finite, silent
from dces_core.engines.hf import HFModel
from dces_core.engines.teacher import Teacher, _empty_scores, batches
from dces_core.errors import RunFailed
from dces_core.events import Progress
from dces_core.ranks import Ranks

SCORES = ("logprob", "entropy", "confidence", "correct", "mass")


class ShardedModel(HFModel):
    """See LanguageModel. Rank 0 calls it as it would call a model of its own; the other ranks `serve`."""

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.ranks = ranks
        if ranks.rank == 0:
            ranks.call("open", (), lambda: super(ShardedModel, self).__init__(config))
        else:
            super().__init__(config)

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Another rank's share of a call of rank 0."""
        return getattr(self, f"_{name}_share")(*arguments)

    # weights --------------------------------------------------------------------------------------------------------

    def load(self, path: Path | None) -> None:
        """See LanguageModel: every rank reads the file."""
        self.ranks.call("load", (path,), lambda: self._load_share(path))

    def freeze(self, path: Path | None) -> None:
        """See LanguageModel: every rank reads the file."""
        self.ranks.call("freeze", (path,), lambda: self._freeze_share(path))

    def _load_share(self, path: Path | None) -> None:
        super().load(path)

    def _freeze_share(self, path: Path | None) -> None:
        super().freeze(path)

    # rows by rank ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: list[list[int]],
        settings: Generate,
        uniforms: NDArray[np.float64],
        progress: Progress = silent,
        limits: list[int] | None = None,
        which: Which = "current",
    ) -> list[Generation]:
        """See LanguageModel; beam search is done by rank 0 alone."""
        if settings.decoding == "beam":
            return super().generate(prompts, settings, uniforms, progress, limits, which)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        parts = self._dealt([order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)])
        limits = limits if limits is not None else [settings.max_new_tokens] * len(prompts)
        arguments = (parts, prompts, settings, uniforms, limits, which)
        shares = self.ranks.call("generate", arguments, lambda: self._generate_share(*arguments, progress))
        return _in_order(parts, shares)

    def _generate_share(
        self,
        parts: list[list[int]],
        prompts: list[list[int]],
        settings: Generate,
        uniforms: NDArray[np.float64],
        limits: list[int],
        which: Which,
        progress: Progress = silent,
    ) -> list[Generation]:
        rows = parts[self.ranks.rank]
        if not rows:
            return []
        return super().generate([prompts[i] for i in rows], settings, uniforms[rows], progress, [limits[i] for i in rows], which)

    def score(self, examples: list[Example], which: Which = "current", progress: Progress = silent) -> TokenScores:
        """See LanguageModel."""
        parts = self._dealt(list(batches(examples)))
        shares = self.ranks.call("score", (parts, examples, which), lambda: self._score_share(parts, examples, which, progress))
        whole = _empty_scores(examples)
        for rows, share in zip(parts, shares, strict=True):
            places = _token_places(examples, rows)
            for name in SCORES:
                getattr(whole, name)[places] = getattr(share, name)
        return whole

    def _score_share(self, parts: list[list[int]], examples: list[Example], which: Which, progress: Progress = silent) -> TokenScores:
        return super().score([examples[i] for i in parts[self.ranks.rank]], which, progress)

    def divergence(self, examples: list[Example]) -> Floats:
        """See LanguageModel."""
        parts = self._dealt(list(batches(examples)))
        shares = self.ranks.call("divergence", (parts, examples), lambda: self._divergence_share(parts, examples))
        whole = np.zeros(sum(len(example.response) for example in examples), np.float32)
        for rows, share in zip(parts, shares, strict=True):
            whole[_token_places(examples, rows)] = share
        return whole

    def _divergence_share(self, parts: list[list[int]], examples: list[Example]) -> Floats:
        return super().divergence([examples[i] for i in parts[self.ranks.rank]])

    def resample(self, examples: list[Example], settings: Edit, temperature: float, uniforms: list[NDArray[np.float64]]) -> list[Proposal]:
        """See LanguageModel."""
        parts = self._dealt(list(batches(examples)))
        arguments = (parts, examples, settings, temperature, uniforms)
        return _in_order(parts, self.ranks.call("resample", arguments, lambda: self._resample_share(*arguments)))

    def _resample_share(
        self, parts: list[list[int]], examples: list[Example], settings: Edit, temperature: float, uniforms: list[NDArray[np.float64]]
    ) -> list[Proposal]:
        rows = parts[self.ranks.rank]
        return super().resample([examples[i] for i in rows], settings, temperature, [uniforms[i] for i in rows])

    def embed_hidden(self, texts: list[str]) -> NDArray[np.float32]:
        """See LanguageModel."""
        parts = self._dealt([[i] for i in range(len(texts))])
        shares = self.ranks.call("embed_hidden", (parts, texts), lambda: self._embed_hidden_share(parts, texts))
        return np.stack(_in_order(parts, shares)) if texts else np.zeros((0, 1), np.float32)

    def _embed_hidden_share(self, parts: list[list[int]], texts: list[str]) -> NDArray[np.float32]:
        return super().embed_hidden([texts[i] for i in parts[self.ranks.rank]])

    def _dealt(self, batched: list[list[int]]) -> list[list[int]]:
        """The rows of each rank: whole batches in turn, for the width and the order of a batch decide its last digits."""
        return [[row for batch in batched[rank :: self.ranks.world] for row in batch] for rank in range(self.ranks.world)]

    # training -------------------------------------------------------------------------------------------------------

    def train(self, examples: list[Example], settings: Train, seed: int, progress: Progress = silent) -> list[float]:
        """See LanguageModel."""
        losses: list[float] = self.ranks.call(
            "train", (examples, settings, seed), lambda: self._train_share(examples, settings, seed, progress)
        )[0]
        return losses

    def _train_share(self, examples: list[Example], settings: Train, seed: int, progress: Progress = silent) -> list[float]:
        examples = [example for example in examples if example.response]
        if not examples:
            return []
        teacher = self._teacher("frozen") if any(example.soft for example in examples) else None
        gamma = settings.tce_gamma if settings.loss == "truncated" else None
        objective = Objective(copy.deepcopy(self._master).requires_grad_(True), self._device, self._bf16, gamma, teacher)
        with self.ranks.listening():
            losses = train_sharded(objective, self.ranks, examples, settings, seed, progress)
            with torch.no_grad():
                for whole, part in zip(self._master.parameters(), objective.model.parameters(), strict=True):
                    whole.copy_(part.full_tensor())
        trainer._require_finite_weights(self._master, settings)
        self._refresh()
        return losses


class Objective(nn.Module):
    """The training loss as a module: FSDP2 gathers the weights of a module for its `forward`."""

    def __init__(self, model: Any, device: torch.device, bf16: bool, gamma: float | None, teacher: Teacher | None) -> None:
        super().__init__()
        self.model, self._device, self._bf16, self._gamma, self._teacher = model, device, bf16, gamma, teacher

    def forward(self, examples: list[Example]) -> tuple[torch.Tensor, int]:
        """Mean loss over response tokens, and their number. Every rank passes through each block once: no prefix is shared."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            head = self.model.get_output_embeddings()
            return trainer.response_loss(self.model.base_model, head, examples, self._device, self._gamma, self._teacher, share=False)


def train_sharded(
    objective: Objective, ranks: Ranks, examples: list[Example], settings: Train, seed: int, progress: Progress
) -> list[float]:
    """As trainer.train, each batch split by rank; the loss of each step, over all ranks. Out of memory is final."""
    torch.manual_seed(seed + ranks.rank)  # for dropout alone, where a model has it
    plan, losses = trainer.plan_batches(examples, settings, seed), []
    accelerator, objective, optimiser = shard(objective, ranks, settings)
    objective.train()
    for step, batch in enumerate(plan):
        for group in optimiser.param_groups if settings.schedule == "linear" else ():
            group["lr"] = settings.lr * (1 - step / len(plan))
        own = [examples[i] for i in batch[ranks.rank :: ranks.world]]
        loss, tokens = objective(own or [examples[batch[0]]])
        share = loss * (tokens / sum(len(examples[i].response) for i in batch) if own else 0.0)
        accelerator.backward(share * ranks.world)  # FSDP2 takes the mean over ranks
        total = share.detach().clone()
        distributed.all_reduce(total)
        require_finite("training loss", total.item(), step + 1, len(plan), settings.lr)
        norm = accelerator.clip_grad_norm_(objective.parameters(), settings.max_grad_norm).full_tensor().item()
        require_finite("gradient", norm, step + 1, len(plan), settings.lr)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(total.item())
        progress(step + 1, len(plan))
    return losses


def shard(objective: Objective, ranks: Ranks, settings: Train) -> tuple[Any, Any, Any]:
    """Accelerator, objective and optimiser under FSDP2; `ranks.sharding` says what was obtained. Raises RunFailed where it is less."""
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    kinds = sorted(objective.model._no_split_modules or [])
    blocks = sum(type(module).__name__ in kinds for module in objective.modules())
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=kinds, cpu_ram_efficient_loading=False
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=objective._device.type == "cpu", fsdp_plugin=plugin)
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:  # Accelerate 1.15 takes the plugin on cards alone, and says nothing
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    optimiser = torch.optim.AdamW(objective.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    wrapped, optimiser = accelerator.prepare(objective, optimiser)
    found = sum(isinstance(module, FSDPModule) for module in wrapped.modules()) - isinstance(wrapped, FSDPModule)
    weights = list(wrapped.parameters())
    split, world = sum(isinstance(weight, DTensor) for weight in weights), accelerator.num_processes
    if not 0 < blocks == found or split != len(weights) or world != ranks.world:
        raise RunFailed(
            f"FSDP2 wrapped {found} of {blocks} blocks and split {split} of {len(weights)} weights on {world} of {ranks.world} processes; "
            "use the versions of constraints.txt, or run without --launcher."
        )
    ranks.sharding = {"kind": "FSDP2", "world": world, "backend": ranks.backend, "blocks": found, "weights": split}
    return accelerator, wrapped, optimiser


def _in_order(parts: list[list[int]], shares: list[Any]) -> list[Any]:
    """What the ranks made of their rows, in the order of rows."""
    found = {row: made for rows, share in zip(parts, shares, strict=True) for row, made in zip(rows, share, strict=True)}
    return [found[row] for row in range(len(found))]


def _token_places(examples: list[Example], rows: list[int]) -> NDArray[np.int64]:
    """Where the response tokens of these examples lie among those of all."""
    starts = np.cumsum([0, *(len(example.response) for example in examples)])
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(starts[i], starts[i + 1]) for i in rows)])
