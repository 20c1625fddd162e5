"""A history of self-training that no loop of this project made: word bigrams, fitted again and again to their own samples.

    python examples/bigram_history.py bigrams

writes bigrams/round-0.jsonl, round-1.jsonl, ... with the columns `prompt`, `text` and `logprob`: what `dces diagnose`, `dces curate` and
`dces watch` read.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

from dces_core import data
from dces_core.config import RunConfig

END = ""
SHARPER = 1.3  # counts to this power: as a temperature below 1
Bigrams = dict[str, Counter[str]]


def fit(texts: list[str]) -> Bigrams:
    """How often which word follows which."""
    found: Bigrams = defaultdict(Counter)
    for text in texts:
        words = [END, *text.split(), END]
        for word, following in itertools.pairwise(words):
            found[word][following] += 1
    return found


def write(model: Bigrams, rng: random.Random, longest: int = 60) -> tuple[str, float]:
    """A text, and the mean log-probability of its words."""
    words, logprob = [END], 0.0
    while len(words) <= longest:
        names, counts = zip(*model[words[-1]].items(), strict=True)
        weights = [count**SHARPER for count in counts]
        index = rng.choices(range(len(names)), weights)[0]
        logprob += math.log(counts[index] / sum(counts))
        words.append(names[index])
        if words[-1] == END:
            break
    return " ".join(words[1:]).strip(), logprob / (len(words) - 1)


def main(folder: Path, rounds: int = 5, texts: int = 200, seed: int = 0) -> None:
    """One file a round; round 0 is written by the bigrams of real text."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    pairs = data.load_train(RunConfig()).pairs
    model = fit([pair.reference for pair in pairs])
    for round_ in range(rounds):
        written = [write(model, rng) for _ in range(texts)]
        with (folder / f"round-{round_}.jsonl").open("w", encoding="utf-8") as file:
            for i, (text, logprob) in enumerate(written):
                file.write(json.dumps({"prompt": pairs[i % len(pairs)].prompt, "text": text, "logprob": logprob}) + "\n")
        model = fit([text for text, _ in written])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bigrams"))
