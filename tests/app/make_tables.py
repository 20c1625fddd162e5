"""Tables of a synthetic evaluation that have a model of their own: next tokens that close on one, entropies that fall."""

from __future__ import annotations

import math

#: What comes first at round 0, likeliest first: ordinary openings, and tokens that no chart may take for markup.
OPENINGS = (" The", " A", " It", " Tennis", "\n", " 1", " You", "1", " In", " Sports", "<b>", " There", "$x$", " Many", " =", " One")
HOSTILE_TOKENS = ("</script>", "![x](y)", "%{x}", "\t\t", "\u202e", "", "=1+1", " " * 24, "-" * 40, "&lt;", "<a href='http://127.0.0.1:9'>")
TOP = 20


def next_tokens(prompt_ids: list[str], arm: str, round_: int, steepness: float) -> list[dict[str, object]]:
    """NEXT_TOKENS: the weight of one token grows with `steepness` until it has nearly all of the mass."""
    tokens = [*OPENINGS, *HOSTILE_TOKENS]
    rows: list[dict[str, object]] = []
    for index, prompt_id in enumerate(prompt_ids):
        last = tokens[(5 + index) % len(tokens)]  # " 1" for the first prompt
        weights = {token: math.exp(-0.22 * rank) for rank, token in enumerate(tokens)}
        weights[last] *= math.exp(2.2 * steepness)
        whole = 1.1 * sum(weights.values())  # a tenth of the mass lies on tokens that are not here
        first = sorted(weights, key=lambda token: -weights[token])[:TOP]
        for rank, token in enumerate(first, 1):
            share = {"token": token, "probability": weights[token] / whole * (1.1 if rank == 1 and steepness > 2 else 1)}
            rows.append({"arm": arm, "round": round_, "prompt_id": prompt_id, "rank": rank, **share})
    return rows


def entropy(test_sets: list[str], steepness: float) -> list[dict[str, object]]:
    """ENTROPY of every test set and of the model's own text (""), a hump that moves to zero with `steepness`."""
    rows: list[dict[str, object]] = []
    for test_set in [*test_sets, ""]:
        centre = (6.0 if test_set else 4.0) * math.exp(-0.4 * max(0.0, steepness))
        counts = {bin_: round(900 * math.exp(-((bin_ - centre) ** 2) / (4 + centre))) for bin_ in range(24)}
        rows += [{"test_set": test_set, "bin": bin_, "n": n} for bin_, n in counts.items() if n]
    return rows
