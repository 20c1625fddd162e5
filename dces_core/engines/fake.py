"""A language model without a network: interpolated word bigrams in NumPy, which collapse as real models do.

For tests and page work. Words, with the space before them, and punctuation are the tokens. The probability of a token is

    p(w | v) = b(w | v) + (1 - sum of b(. | v)) * u(w),    then every word of the prompt is made PROMPT_BOOST times as likely,

where b is a row of bigram mass and u the unigram distribution, a little of it uniform. A step of training moves the rows
that it meets towards what it saw there, so truncated sampling loses the tails, row by row, until loops and repeats are left.
Of the training settings it knows lr, epochs, batch_size, schedule and the loss; the others have no meaning here.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dces_core.config import Edit, Generate, Train, parse
from dces_core.data import Pair, load_train
from dces_core.engines.base import Example, Floats, Generation, Ints, Proposal, TokenScores, Which, silent, unheard
from dces_core.engines.bigrams import UNKNOWN, Doubles, entropy_of, log, move, sample
from dces_core.events import Note, Progress

Ids = list[list[int]]
PIECES = re.compile(r" ?\w+(?:['’]\w+)*| ?[^\w\s]|\s")
END, START = 0, 1
SPECIAL = ("<end>", "<start>", "<unk>")
WORDS = 3000  # the likeliest pieces of the training split; rarer ones are <unk>
BACKOFF = 0.1  # mass left to the unigram distribution, per kind of follower (1: Witten-Bell)
UNIFORM = 0.01  # share of the unigram distribution that is uniform
EMPTY = 0.03  # share of answers that are empty before any training, so that a gate has work
PROMPT_BOOST = 6.0
CHUNK = 256  # probability rows in memory at once
MASS_AT = (1, 10, 100)


@dataclass(frozen=True)
class Weights:
    """`rows[v]`: the tokens that follow v (sorted) and their mass, fp32. `unigram` (vocabulary,), fp32, before its uniform share."""

    rows: dict[int, tuple[Ints, Floats]]
    unigram: Floats


class FakeModel:
    """See LanguageModel. The vocabulary and the base weights come from `pairs`, by default the shipped training split."""

    name = "fake"
    context = 1024
    device = "cpu"
    end = END

    def __init__(self, pairs: list[Pair] | None = None) -> None:
        texts = pairs if pairs is not None else load_train(parse({})).pairs
        counts = Counter(piece for pair in texts for text in (pair.prompt, pair.reference) for piece in PIECES.findall(text))
        words = sorted(counts, key=lambda piece: (-counts[piece], piece))[:WORDS]
        self._pieces: list[str] = [*SPECIAL, *words]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        self.vocabulary = len(self._pieces)
        self.parameters = self.vocabulary**2
        self._base = self._count(texts)
        self._current = self._frozen = self._base
        self.note: Note = unheard

    def _count(self, pairs: list[Pair]) -> Weights:
        follow: dict[int, Counter[int]] = defaultdict(Counter)
        for pair in pairs:
            for left, right in pairwise([START, *self.encode_text(pair.reference), END]):
                follow[left][right] += 1
        follow[START][END] += EMPTY * follow[START].total() / (1 - EMPTY)  # type: ignore[assignment]
        unigram = np.zeros(self.vocabulary)
        rows = {}
        for left, row in follow.items():
            tokens = np.array(sorted(row), np.int64)
            mass = np.array([row[token] for token in sorted(row)], np.float64)
            unigram[tokens] += mass
            rows[left] = (tokens, (mass / (mass.sum() + BACKOFF * len(mass))).astype(np.float32))
        return Weights(rows, (unigram / unigram.sum()).astype(np.float32))

    # text -----------------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: str) -> list[int]:
        """The prompt and the start token."""
        return [*self.encode_text(prompt), START]

    def encode_text(self, text: str) -> list[int]:
        """Words and punctuation; what is not in the vocabulary is <unk>."""
        return [self._ids.get(piece, UNKNOWN) for piece in PIECES.findall(text)]

    def start(self) -> list[int]:
        """Nothing comes before a text."""
        return []

    def embed_hidden(self, texts: list[str]) -> Floats:
        """It has no hidden states: hashed words stand in for them."""
        from dces_core.engines.encoder import HashEncoder

        return HashEncoder().embed(texts)

    def decode(self, ids: list[int]) -> str:
        """Special tokens, <unk> among them, are left out."""
        return "".join(self._pieces[i] for i in ids if i >= len(SPECIAL))

    def piece(self, token: int) -> str:
        """One token as it is written."""
        piece: str = self._pieces[token]
        return piece

    def continues_word(self) -> NDArray[np.bool_]:
        """(vocabulary,): pieces that begin with a letter or digit."""
        return np.array([piece[0].isalnum() for piece in self._pieces])

    # weights --------------------------------------------------------------------------------------------------------

    def load(self, path: Path | None) -> None:
        """See LanguageModel."""
        self._current = self._read(path)

    def freeze(self, path: Path | None) -> None:
        """See LanguageModel."""
        self._frozen = self._read(path)

    def save(self, path: Path) -> None:
        """See LanguageModel."""
        rows = sorted(self._current.rows.items())
        tensors = {
            "left": np.concatenate([np.full(len(tokens), left, np.int32) for left, (tokens, _) in rows]),
            "right": np.concatenate([tokens.astype(np.int32) for _, (tokens, _) in rows]),
            "mass": np.concatenate([mass for _, (_, mass) in rows]),
            "unigram": self._current.unigram,
        }
        save_file(tensors, path)

    def _read(self, path: Path | None) -> Weights:
        if path is None:
            return self._base
        tensors = load_file(path)
        left, right = tensors["left"].astype(np.int64), tensors["right"].astype(np.int64)
        starts = np.flatnonzero(np.diff(left, prepend=-1))
        parts = zip(left[starts].tolist(), np.split(right, starts[1:]), np.split(tensors["mass"], starts[1:]), strict=True)
        return Weights({token: (tokens, mass) for token, tokens, mass in parts}, tensors["unigram"])

    # the four verbs -------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Ids, settings: Generate, uniforms: Doubles, progress: Progress = silent,
        limits: list[int] | None = None, which: Which = "current",
    ) -> list[Generation]:  # fmt: skip
        """See LanguageModel."""
        out: list[Generation] = []
        weights = self._current if which == "current" else self._frozen
        most = limits if limits is not None else [settings.max_new_tokens] * len(prompts)
        for start in range(0, len(prompts), CHUNK):
            part = slice(start, start + CHUNK)
            if settings.decoding == "beam":
                out += [self._beam(prompt, settings) for prompt in prompts[part]]
            else:
                out += self._generate(weights, prompts[part], settings, uniforms[part], most[part])
            progress(len(out), len(prompts))
        return out

    def _generate(self, weights: Weights, prompts: Ids, settings: Generate, uniforms: Doubles, limits: list[int]) -> list[Generation]:
        top_k = 1 if settings.decoding == "greedy" else settings.top_k
        boosts = [_boost(prompt) for prompt in prompts]
        ids: list[list[int]] = [[] for _ in prompts]
        facts: list[list[tuple[float, float]]] = [[] for _ in prompts]
        last = [prompt[-1] for prompt in prompts]
        active = list(range(len(prompts)))
        for step in range(settings.max_new_tokens):
            rows = self._probabilities(weights, [last[i] for i in active], [boosts[i] for i in active])
            drawn = sample(rows, uniforms[active, step], settings.temperature, top_k, settings.top_p)
            entropy = entropy_of(rows)
            for row, i in enumerate(active):
                last[i] = int(drawn[row])
                if last[i] != END:
                    ids[i].append(last[i])
                    facts[i].append((float(np.log(rows[row, last[i]])), float(entropy[row])))
            active = [i for i in active if last[i] != END and step + 1 < limits[i]]
            if not active:
                break
        scores = [np.array(fact, np.float32).reshape(-1, 2) for fact in facts]
        return [Generation(ids[i], last[i] == END, scores[i][:, 0], scores[i][:, 1]) for i in range(len(prompts))]

    def _beam(self, prompt: list[int], settings: Generate) -> Generation:
        """Beam search: the largest mean log-probability, that of the end token included. Never <unk>."""
        boost, width = _boost(prompt), settings.beams
        live: list[tuple[float, list[int], list[tuple[float, float]]]] = [(0.0, [], [])]
        found: list[tuple[float, bool, list[int], list[tuple[float, float]]]] = []
        for step in range(1, settings.max_new_tokens + 1):
            rows = self._probabilities(self._current, [[*prompt, *ids][-1] for _, ids, _ in live], [boost] * len(live))
            entropy, own = entropy_of(rows), np.where(rows > 0, log(rows), -np.inf)
            own[:, UNKNOWN] = -np.inf
            total = (own + np.array([beam[0] for beam in live])[:, None]).ravel()
            best = np.argpartition(-total, min(2 * width, len(total)) - 1)[: 2 * width]
            live, before = [], live
            for rank, place in enumerate(best[np.argsort(-total[best], kind="stable")].tolist()):
                i, token = divmod(place, self.vocabulary)
                _, ids, facts = before[i]
                if token != END:
                    live.append((float(total[place]), [*ids, token], [*facts, (float(own[i, token]), float(entropy[i]))]))
                elif rank < width:
                    found.append((float(total[place]) / step, True, ids, facts))
            live = live[:width]
            if len(found) >= width:
                break
        found += [(total / len(ids), False, ids, facts) for total, ids, facts in live]
        _, ended, ids, facts = max(found, key=lambda beam: beam[0])
        scores = np.array(facts, np.float32).reshape(-1, 2)
        return Generation(ids, ended, scores[:, 0], scores[:, 1])

    def score(self, examples: list[Example], which: Which = "current", progress: Progress = silent) -> TokenScores:
        """See LanguageModel."""
        weights = self._current if which == "current" else self._frozen
        total = sum(len(example.response) for example in examples)
        parts: list[list[NDArray[np.generic]]] = []
        done = 0
        for targets, rows in self._chunks(weights, examples):
            at = np.arange(len(targets))
            top = -np.partition(-rows, min(MASS_AT[-1], rows.shape[1] - 1), axis=1)[:, : MASS_AT[-1]]
            cumulative = np.cumsum(-np.sort(-top, axis=1), axis=1)
            mass = np.stack([cumulative[:, min(k, cumulative.shape[1]) - 1] for k in MASS_AT], axis=1)
            parts.append([np.log(rows[at, targets]), entropy_of(rows), cumulative[:, 0], rows.argmax(axis=1) == targets, mass])
            done += len(targets)
            progress(done, total)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 4 + [np.zeros((0, 3))]
        logprob, entropy, confidence, correct, mass = columns
        return TokenScores(
            example=np.array([i for i, example in enumerate(examples) for _ in example.response], np.int64),
            target=np.array([token for example in examples for token in example.response], np.int64),
            logprob=logprob.astype(np.float32),
            entropy=entropy.astype(np.float32),
            confidence=confidence.astype(np.float32),
            correct=correct.astype(np.bool_),
            mass=mass.astype(np.float32),
        )

    def next_tokens(self, prompts: Ids, k: int) -> list[list[tuple[int, float]]]:
        """See LanguageModel."""
        rows = self._probabilities(self._current, [prompt[-1] for prompt in prompts], [_boost(prompt) for prompt in prompts])
        return [[(int(token), float(row[token])) for token in np.argsort(-row, kind="stable")[:k]] for row in rows]

    def divergence(self, examples: list[Example]) -> Floats:
        """See LanguageModel."""
        pairs = zip(self._chunks(self._frozen, examples), self._chunks(self._current, examples), strict=True)
        parts = [np.einsum("ij,ij->i", p, log(p) - log(q)) for (_, p), (_, q) in pairs]
        return np.maximum(np.concatenate(parts), 0).astype(np.float32) if parts else np.zeros(0, np.float32)

    def resample(self, examples: list[Example], settings: Edit, temperature: float, uniforms: list[Doubles]) -> list[Proposal]:
        """See LanguageModel."""
        weights = self._current if settings.model == "current" else self._frozen
        noise = np.concatenate([*uniforms, np.zeros(0)])
        probability, drawn, done = np.zeros(len(noise), np.float32), np.zeros(len(noise), np.int64), 0
        for targets, rows in self._chunks(weights, examples):
            part, at = slice(done, done + len(targets)), np.arange(len(targets))
            probability[part] = rows[at, targets]
            if settings.exclude_original:
                rows[at, targets] = 0
            drawn[part] = sample(rows, noise[part], temperature, settings.top_k, 1.0)
            done += len(targets)
        ends = np.cumsum([len(example.response) for example in examples])[:-1]
        split = zip(np.split(probability, ends), np.split(drawn, ends), strict=True) if examples else []
        return [Proposal(p, d) for p, d in split]

    def train(self, examples: list[Example], settings: Train, seed: int, progress: Progress = silent) -> list[float]:
        """See LanguageModel. A soft position learns one token drawn from what it should learn. Weights are rounded to fp32 at the end."""
        examples = [self._hardened(example, np.random.default_rng([seed, i])) for i, example in enumerate(examples)]
        rows = {left: (tokens, mass.astype(np.float64)) for left, (tokens, mass) in self._current.rows.items()}
        unigram = self._current.unigram.astype(np.float64)
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(examples)) for _ in range(settings.epochs)])
        batches = [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
        losses = []
        for step, batch in enumerate(batches):
            lefts, targets, logprob = self._lessons([examples[i] for i in batch])
            kept = logprob <= (np.log(settings.tce_gamma) if settings.loss == "truncated" else 0)
            losses.append(float((-logprob[kept]).sum()) / max(len(targets), 1))
            lr = settings.lr * (1 - step / len(batches) if settings.schedule == "linear" else 1)
            move(rows, unigram, lefts[kept].tolist(), targets[kept].tolist(), lr)
            self._current = Weights(
                {v: (tokens, mass.astype(np.float32)) for v, (tokens, mass) in rows.items()}, unigram.astype(np.float32)
            )
            progress(step + 1, len(batches))
        return losses

    def _hardened(self, example: Example, rng: np.random.Generator) -> Example:
        if not example.soft:
            return example
        rows = np.concatenate([part for _, part in self._chunks(self._frozen, [example])])
        drawn = sample(rows, rng.random(len(rows)), example.soft.temperature, example.soft.top_k, 1.0)
        wanted = set(example.soft.positions)
        return replace(example, labels=[int(drawn[i]) if i in wanted else token for i, token in enumerate(example.response)])

    # probabilities --------------------------------------------------------------------------------------------------

    def _lessons(self, examples: list[Example]) -> tuple[Ints, Ints, Doubles]:
        """What stands before each training target, the targets, and their log-probabilities (nats)."""
        lefts = np.array([left for example in examples for left in _lefts(example)], np.int64)
        labels = np.array([token for example in examples for token in _targets(example)], np.int64)
        logprob = np.zeros(len(labels))
        done = 0
        for targets, rows in self._chunks(self._current, examples):
            part = slice(done, done + len(targets))
            logprob[part] = np.log(rows[np.arange(len(targets)), labels[part]])
            done += len(targets)
        return lefts, labels, np.minimum(logprob, 0)

    def _chunks(self, weights: Weights, examples: list[Example]) -> Iterator[tuple[Ints, Doubles]]:
        """Response tokens and their probability rows, of at most CHUNK positions, in the order of `examples`."""
        lefts, boosts = [], []
        for example in examples:
            lefts += _lefts(example)
            boosts += [_boost(example.prompt)] * len(example.response)
        targets = np.array([token for example in examples for token in example.response], np.int64)
        for start in range(0, len(lefts), CHUNK):
            part = slice(start, start + CHUNK)
            yield targets[part], self._probabilities(weights, lefts[part], boosts[part])

    def _probabilities(self, weights: Weights, lefts: list[int], boosts: list[Ints]) -> Doubles:
        """(len(lefts), vocabulary), rows sum to 1."""
        rows = np.empty((len(lefts), self.vocabulary))
        unigram = weights.unigram * (1 - UNIFORM) + np.float64(UNIFORM / (self.vocabulary - 1))
        unigram[START] = 0
        for row, left, boost in zip(rows, lefts, boosts, strict=True):
            tokens, mass = weights.rows.get(left, (np.zeros(0, np.int64), np.zeros(0, np.float32)))
            np.multiply(unigram, 1 - mass.sum(dtype=np.float64), out=row)
            row[tokens] += mass
            row[boost] *= PROMPT_BOOST
        rows /= rows.sum(axis=1, keepdims=True)
        return rows


def _boost(prompt: list[int]) -> Ints:
    """The distinct ordinary tokens of a prompt, without what was answered already."""
    asked = prompt[: prompt.index(START)] if START in prompt else prompt
    return np.array(sorted({token for token in asked if token >= len(SPECIAL)}), np.int64)


def _lefts(example: Example) -> list[int]:
    """What stands before each response token."""
    assert example.prompt, "a response needs at least one token of context"
    return [example.prompt[-1], *example.response][: len(example.response)]


def _targets(example: Example) -> list[int]:
    """What each response position is trained towards."""
    targets = example.response if example.labels is None else example.labels
    assert len(targets) == len(example.response)
    return targets
