"""Where decoding spends its time, by kind of operation, as torch's profiler sees it."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from dces_core import machine
from dces_core.bench import sides
from dces_core.bench.generation import fixed
from dces_core.bench.plan import Plan
from dces_core.bench.rows import Row

NAME = "generate-profile"
#: Kinds by the operations that only they use; everything else is `rest` (norms, rotary angles, activations, copies, Python).
KINDS = {
    "products": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    "sampler": (
        "aten::exp", "aten::exp_", "aten::amax", "aten::topk", "aten::argmax", "aten::sort", "aten::cumsum", "aten::searchsorted",
        "aten::linalg_vecdot", "aten::gather", "aten::nonzero", "aten::isin", "aten::log",
    ),
}  # fmt: skip


def decoding(plan: Plan) -> list[Row]:
    """The batch of generate-topp once more under the profiler: seconds by kind of operation, and their share."""
    settings = fixed(plan, temperature=0.8, top_p=0.95)
    with sides.open_lab(sides.settings(plan)) as lab:
        lab.engine._ends = []  # type: ignore[attr-defined]
        prompts, noise = sides.prompts(lab, plan.batch), np.random.default_rng(0).random((plan.batch, plan.new_tokens))
        machine.keep_memory()
        lab.engine.generate(prompts, settings, noise)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            lab.engine.generate(prompts, settings, noise)
    seconds = dict.fromkeys((*KINDS, "rest"), 0.0)
    for event in seen.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key in names), "rest")
        seconds[kind] += event.self_cpu_time_total / 1e6
    whole, tokens = sum(seconds.values()), plan.batch * plan.new_tokens
    floor = _floor_s(plan, lab.engine.parameters)
    rows = [Row(f"{NAME}-{kind}", value, None, value / whole, "s", tokens, "ratio: share of all") for kind, value in seconds.items()]
    note = "all parameters once per new token, at the speed of one large product in the same precision"
    return [*rows, Row(f"{NAME}-floor", floor, whole, floor / whole, "s", tokens, note)]


def _floor_s(plan: Plan, parameters: int, size: int = 2048) -> float:
    """Seconds that the products would take at the processor's best rate, measured on size x size matrices."""
    a, b = (torch.randn(size, size).to(sides.peer_type(plan)) for _ in range(2))
    best = float("inf")
    for _ in range(plan.repeats + 2):
        started = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * parameters * plan.batch * plan.new_tokens / (2 * size**3 / best)
