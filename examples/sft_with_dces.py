"""DCES inside a training loop of one's own: three rounds in which a tiny model learns from its own texts, curated.

    python examples/sft_with_dces.py

Only the line with `curate` is DCES. In a loop of yours, `answer` and `fit` are what you have already.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dces_core
from dces_core import models

PROMPTS = ["Name a fruit.", "What is rain?", "Why do birds sing?", "How is bread made?", "Where do rivers end?", "Who reads at night?"]


def answer(model: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
    """One sampled text, with the mean log-probability that it had."""
    given = tokenizer(prompt + "\n", return_tensors="pt")["input_ids"]
    out = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=True, max_new_tokens=12, output_logits=True, return_dict_in_generate=True
    )
    scores = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)
    text = tokenizer.decode(out.sequences[0, given.shape[1] :], skip_special_tokens=True)
    return {"prompt": prompt, "text": text, "logprob": min(0.0, float(scores.mean()))}


def fit(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    """One pass of ordinary fine-tuning."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for row in rows:
        ids = tokenizer(f"{row['prompt']}\n{row['text']}", return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(rounds: int = 3, name: str = "tiny-gpt2", encoder: str = "minilm") -> list[dict[str, Any]]:
    """The reports of all rounds."""
    folder = models.resolve(name)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = [f"encoder.name={encoder}", "gate.on=false"]  # a model that knows nothing writes junk
    reports: list[dict[str, Any]] = []
    with TemporaryDirectory() as place:
        state, weights = Path(place) / "state.json", Path(place) / "current"
        for _ in range(rounds):
            model.save_pretrained(weights)
            pool = [answer(model, tokenizer, prompt) for prompt in PROMPTS * 4]
            found = dces_core.curate(
                pool, len(pool) // 2, model=name, current=weights, reference="everyday", state=state, settings=settings
            )
            fit(model, tokenizer, found.selected.to_dicts())
            reports.append(found.report)
    return reports


if __name__ == "__main__":
    torch.manual_seed(0)
    for report in main():
        print({key: report[key] for key in ("round", "edge_share", "edit_temperature", "picked_center", "picked_edge", "changed")})
    sys.exit(0)
