"""Fine-tuning: a short loop on Accelerate. Loss on response tokens only, batches of similar length, fp32 masters."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn import functional

from dces_core.config import Train
from dces_core.engines.base import Example, require_finite, silent, unheard
from dces_core.engines.memory import Halving
from dces_core.engines.teacher import Teacher, response_states
from dces_core.errors import NotFinite
from dces_core.events import Note, Progress


def plan_batches(examples: list[Example], settings: Train, seed: int) -> list[list[int]]:
    """Index batches of all epochs: shuffled, then grouped by length within windows of 16 batches, then shuffled as batches."""
    rng, size, out = np.random.default_rng(seed), settings.batch_size, []
    window = 16 * size
    for _ in range(settings.epochs):
        order = rng.permutation(len(examples))
        groups = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda i: len(examples[i].prompt) + len(examples[i].response))
            groups += [part[i : i + size] for i in range(0, len(part), size)]
        out += [[int(i) for i in groups[g]] for g in rng.permutation(len(groups))]
    return out


def response_loss(
    body: torch.nn.Module,
    head: torch.nn.Module,
    examples: list[Example],
    device: torch.device,
    gamma: float | None = None,
    teacher: Teacher | None = None,
    share: bool = True,
) -> tuple[torch.Tensor, int]:
    """Mean cross-entropy (nats) over the response tokens of a batch, and their number.

    Soft positions are compared with the distribution of `teacher` (Hinton et al. 2015, arXiv 1503.02531). `gamma`: truncated cross-entropy
    (arXiv 2509.08972): tokens of a larger probability add nothing to the sum; the mean is still over all. `share`: see response_states.
    """
    labels = torch.tensor([token for e in examples for token in (e.response if e.labels is None else e.labels)], device=device)
    logits = head(response_states(body, examples, device, share)).float()
    soft = torch.tensor([i in wanted for e in examples for wanted in [_soft(e)] for i in range(len(e.response))], device=device)
    if gamma is None and not soft.any():
        return functional.cross_entropy(logits, labels), len(labels)
    losses = functional.cross_entropy(logits[~soft], labels[~soft], reduction="none")
    total = losses.sum() if gamma is None else (losses * (losses.detach() >= -math.log(gamma))).sum()
    if soft.any():
        assert teacher, "soft positions need the frozen model"
        total = total + functional.cross_entropy(logits[soft], _distributions(teacher, examples), reduction="sum")
    return total / len(labels), len(labels)


def _soft(example: Example) -> set[int]:
    return set(example.soft.positions) if example.soft else set()


@torch.no_grad()
def _distributions(teacher: Teacher, examples: list[Example]) -> torch.Tensor:
    """(soft positions, vocabulary) what the soft positions of these examples learn, in their order."""
    chosen = [(example, example.soft) for example in examples if example.soft and example.soft.positions]
    edges = [0, *accumulate(len(example.response) for example, _ in chosen)]
    hidden = teacher.hidden([example for example, _ in chosen])
    found = []
    for start, (_, soft) in zip(edges, chosen, strict=False):
        logits = teacher.head(hidden[[start + i for i in sorted(soft.positions)]]).float() / soft.temperature
        if soft.top_k and soft.top_k < logits.shape[1]:
            logits = logits.masked_fill(logits < logits.topk(soft.top_k).values[:, -1:], -torch.inf)
        found.append(logits.softmax(-1))
    return torch.cat(found)


def _prepare(model: torch.nn.Module, settings: Train, bf16: bool, device: torch.device) -> tuple[Accelerator, Any]:
    """A fresh optimiser for `model`, and what runs it."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it is global: a second run in this process may have another precision
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=device.type == "cpu")
    fused = device.type in ("cpu", "cuda")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "adamw-8bit":
        from bitsandbytes.optim import AdamW8bit

        return accelerator, accelerator.prepare(AdamW8bit(trained, lr=settings.lr, weight_decay=settings.weight_decay))
    optimiser = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return accelerator, accelerator.prepare(optimiser)


def _add_gradient(
    batch: list[int],
    tokens: int,
    at_once: int,
    loss_of: Callable[[list[int]], tuple[torch.Tensor, int]],
    accelerator: Accelerator,
    optimiser: Any,
    memory: Halving,
) -> float:
    """Add the gradient of the batch's mean loss over `tokens` tokens, and return that loss; `at_once` sequences at a time (0: all),
    by halves where memory demands it.
    """
    values: list[float] = []

    def work(part: list[int]) -> None:
        size = (-(-at_once // 2) if memory.halved else at_once) or len(part)
        for start in range(0, len(part), size):
            loss, own = loss_of(part[start : start + size])
            if own < tokens:
                loss = loss * (own / tokens)
            accelerator.backward(loss)
            values.append(loss.detach().item())

    def undo() -> None:
        values.clear()
        optimiser.zero_grad(set_to_none=True)

    memory.do(batch, work, undo)
    return sum(values)


def train(
    model: torch.nn.Module,
    body: torch.nn.Module,
    head: torch.nn.Module,
    examples: list[Example],
    settings: Train,
    seed: int,
    bf16: bool,
    device: torch.device,
    progress: Progress = silent,
    teacher: Teacher | None = None,
    note: Note = unheard,
) -> list[float]:
    """Fine-tune `model` in place; the loss of each optimiser step. Raises NotFinite on a NaN or infinite loss, gradient or weight.

    `teacher`: the frozen M_0, for examples with soft positions. Where memory runs out, a batch's gradient is summed over its halves.
    """
    examples = [example for example in examples if example.response]
    if not examples:
        return []
    torch.manual_seed(seed)
    accelerator, optimiser = _prepare(model, settings, bf16, device)
    plan = plan_batches(examples, settings, seed)
    model.train()
    losses, memory, gamma = [], Halving("training on", note), settings.tce_gamma if settings.loss == "truncated" else None

    def loss_of(part: list[int]) -> tuple[torch.Tensor, int]:
        with accelerator.autocast():
            return response_loss(body, head, [examples[i] for i in part], device, gamma, teacher)

    for step, batch in enumerate(plan):
        for group in optimiser.param_groups if settings.schedule == "linear" else ():
            group["lr"] = settings.lr * (1 - step / len(plan))
        tokens = sum(len(examples[i].response) for i in batch)
        value = _add_gradient(batch, tokens, settings.micro_batch_size, loss_of, accelerator, optimiser, memory)
        require_finite("training loss", value, step + 1, len(plan), settings.lr)
        norm = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
        require_finite("gradient", norm, step + 1, len(plan), settings.lr)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(value)
        progress(step + 1, len(plan))
    model.eval()
    _require_finite_weights(model, settings)
    return losses


def _require_finite_weights(model: torch.nn.Module, settings: Train) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise NotFinite("the weights are not finite after training", f"lower train.lr (now {settings.lr:g})")
