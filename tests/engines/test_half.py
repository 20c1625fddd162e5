"""Half precision against transformers on the default model: greedy texts part only where two tokens were level."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dces_core import models
from dces_core.config import SHIPPED, Generate, parse
from dces_core.engines.hf import HFModel

PROMPTS, TOKENS = 16, 32
#: bf16 keeps 8 bits: two logits of about 16 are told apart from 0.125 on. Both sides round, each through thirty layers in its own order:
#: two tokens are level where fp32 has them within so many of these steps.
BITS, STEPS = 8, 3


@pytest.mark.slow
def test_greedy_in_bf16_leaves_generate_only_where_two_tokens_are_level(capsys: pytest.CaptureFixture[str]) -> None:
    if not models.pulled():
        pytest.skip("the default model is not on this machine: dces models pull")
    engine = HFModel(parse({"device": "cpu", "train": {"precision": "bf16"}}))
    lines = (SHIPPED / "everyday" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
    prompts = [engine.encode_prompt(json.loads(line)["prompt"]) for line in lines]
    engine._ends = []
    ours = [g.ids for g in engine.generate(prompts, Generate(decoding="greedy", max_new_tokens=TOKENS), np.zeros((PROMPTS, TOKENS)))]
    peer, exact = (
        AutoModelForCausalLM.from_pretrained(models.resolve(models.DEFAULT), dtype=dtype, use_safetensors=True).eval()
        for dtype in (torch.bfloat16, torch.float32)
    )
    same = 0
    for prompt, mine in zip(prompts, ours, strict=True):
        theirs = greedy(peer, prompt)
        step = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
        same += step is None
        if step is not None:
            gap, resolution = distance(exact, prompt + mine[:step], mine[step], theirs[step])
            assert gap <= STEPS * resolution, f"token {step} differs although the logits are {gap:.3f} apart"
    with capsys.disabled():
        print(f"\nbf16 greedy: {same} of {PROMPTS} sequences of {TOKENS} tokens are those of generate")
    assert same >= PROMPTS // 4


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The peer's response, no token ends it."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, eos_token_id=None, pad_token_id=0
        )
    return list(out[0, len(prompt) :].tolist())


def distance(model: Any, ids: list[int], one: int, other: int) -> tuple[float, float]:
    """How far the logits of two tokens are apart after `ids`, and the step between neighbouring bf16 numbers of their size."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1].float()
    size = max(abs(float(logits[one])), abs(float(logits[other])))
    return abs(float(logits[one] - logits[other])), 2.0 ** (math.floor(math.log2(size)) - BITS + 1)
