"""What a diagnosis computes of texts by round: statistics over all of them, embeddings and scores over a stated sample.

Nothing heavy is imported before it is needed. diagnose.py assembles what comes out; diagnosis_jobs.py has the jobs of the page.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dces_core import data
from dces_core.config import Map, parse
from dces_core.diagnose import ABSENT, CLUSTERS, POINTS, REPEATED, ROUNDS, WORST, Diagnosis, Options, assemble
from dces_core.engines.base import Encoder, Example, LanguageModel
from dces_core.events import Progress
from dces_core.metrics import probability
from dces_core.metrics import tally as tallies
from dces_core.metrics.assemble import NO_GENERATED_TOKENS, pool_budget
from dces_core.metrics.semantic import dispersion, nearest_reference, vendi
from dces_core.metrics.tally import MAX_UNITS, Scan
from dces_core.metrics.text import evenly, self_bleu, tail_seen, types_seen, units
from dces_core.metrics.value import Value, rows, undefined
from dces_core.own_rounds import OwnRounds
from dces_core.records import table
from dces_core.seeds import rng_for, seed_for

Floats = NDArray[np.float32]
WORST_KEPT = 10  # texts a round
REPEATED_KEPT = 3
PAIRWISE_TEXTS = 1_000  # read by vendi and self_bleu
MAP_TEXTS = 500  # points a round
CLUSTER_COUNT = 12
SCORED_TEXTS = 300  # read by a model, a round
SCORED_TOKENS = 128


class Spans(Protocol):
    """Who is told how far the work is (events.Events, or a bar in the terminal)."""

    def span(self, round_: int, arm: str, stage: str) -> AbstractContextManager[Progress]:
        """Around a piece of work; yields the function that reports its progress."""


def diagnose(rounds: OwnRounds, options: Options, spans: Spans) -> Diagnosis:
    """Everything. Raises UserError where the reference, the encoder or the model cannot be used."""
    figures = Figures(rounds, options, spans)
    found, fewest, space = figures.found, figures.fewest, figures.space
    for round_ in rounds.rounds:
        _describe(rounds, round_, figures.add(round_), found)
    tables = {
        "metrics": table("metrics", found["metrics"]),
        "rounds": pl.DataFrame(found["rounds"], schema=ROUNDS),
        "clusters": pl.DataFrame(found["clusters"], schema=CLUSTERS),
        "points": pl.DataFrame(found["points"], schema=POINTS),
        "worst": pl.DataFrame(found["worst"], schema=WORST),
        "repeated": pl.DataFrame(found["repeated"], schema=REPEATED),
    }
    facts = {
        "source": rounds.source, "texts": sum(rounds.counts.values()), "references": len(figures.references),
        "budget_units": figures.budget, "encoder": space.encoder.name, "embedded": space.sample,
        "pairwise": min(PAIRWISE_TEXTS, fewest), "map": space.map_facts,
        "model": options.model or None, "scored": min(SCORED_TEXTS, fewest) if options.model else 0,
    }  # fmt: skip
    return assemble(facts, tables)


class Figures:
    """The figures of rounds, one after the other, the first round first. What all rounds share is fixed here: equal budgets and samples.

    A round that comes later is read by the same measure; where it has fewer texts than `fewest`, all must be computed anew.
    """

    def __init__(self, rounds: OwnRounds, options: Options, spans: Spans) -> None:
        self.rounds, self.spans = rounds, spans
        self.references = _references(rounds, options)
        self.fewest = min(rounds.counts.values())
        self.budget = min(pool_budget(self.fewest), MAX_UNITS)
        self.space = _Space(rounds, self.references, options, spans)
        self.scorer = _scorer(options)
        names = ("rounds", "metrics", "clusters", "points", "worst", "repeated")
        self.found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def add(self, round_: int) -> Scan:
        """The metrics of a round go to `found`."""
        rounds = self.rounds
        scan, values = _of_texts(rounds, round_, self.budget, self.fewest, self.references, self.spans)
        values |= self.space.values(round_, self.found)
        values["ref_ppl"] = _scored(rounds, round_, self.fewest, self.scorer, self.spans)
        values = {**{name: undefined(reason) for name, reason in ABSENT.items()}, **values}
        self.found["metrics"] += rows(values, arm=rounds.arm, seed=0, round_=round_)
        return scan


def _references(rounds: OwnRounds, options: Options) -> list[str]:
    """Real texts: the file that was given, else those that came with the rounds."""
    if not options.reference:
        return rounds.references
    corpus = data.load("reference", f"reference = {options.reference!r}", options.reference, "train")
    return [pair.reference for pair in corpus.pairs]


# all texts --------------------------------------------------------------------------------------------------------------


def _of_texts(
    rounds: OwnRounds, round_: int, budget: int, fewest: int, references: list[str], spans: Spans
) -> tuple[Scan, dict[str, Value]]:
    """Statistics over every text of the round; self_bleu over PAIRWISE_TEXTS."""
    total, done = rounds.counts[round_], 0
    with spans.span(round_, rounds.arm, "texts") as progress:

        def batches() -> Any:
            nonlocal done
            for batch in rounds.batches(round_):
                yield batch
                done += len(batch)
                progress(done, 2 * total)

        scan = tallies.scan(batches(), WORST_KEPT)
        pooled = tallies.pool(batches(), scan.lengths, budget)
        few = tallies.pick(rounds.batches(round_), evenly(total, min(PAIRWISE_TEXTS, fewest)))
        values = {**scan.values, **pooled.values, "self_bleu": self_bleu(few, PAIRWISE_TEXTS)}
    if references:
        known = Counter(unit for text in references for unit in units(text))
        values |= {"tail_coverage": tail_seen(pooled.counts, known), **types_seen(pooled.counts, known)}
    return scan, values


def _describe(rounds: OwnRounds, round_: int, scan: Scan, found: dict[str, list[dict[str, Any]]]) -> None:
    """The row of the round, its worst texts and its most frequent ones."""
    hashed = rounds.scan(round_).select(pl.col("text").hash(0).alias("key"), pl.col("text").str.slice(0, tallies.KEPT_CHARACTERS))
    counts = hashed.group_by("key").agg(pl.len().alias("copies")).collect(engine="streaming")
    top = counts.filter(pl.col("copies") > 1).sort("copies", "key", descending=[True, False]).head(REPEATED_KEPT)
    texts = hashed.join(top.lazy(), on="key").unique("key").collect(engine="streaming").sort("copies", "key", descending=[True, False])
    found["repeated"] += [{"round": round_, "text": text, "copies": copies} for text, copies in texts.select("text", "copies").iter_rows()]
    found["worst"] += [
        {"round": round_, "text": one.text, "units": one.units, "loop_units": one.loop_units, "rep_4": one.rep_4, "score": one.score}
        for one in scan.worst
    ]
    total, length = rounds.counts[round_], int(scan.lengths.sum())
    found["rounds"].append(
        {
            "round": round_, "texts": total, "empty": scan.empty, "copies": total - counts.height, "units": length,
            "mean_units": length / total,
        }
    )  # fmt: skip


# embeddings -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ground:
    """What the first round fixes for all later ones."""

    dispersion: Floats  # centroids of S_t
    clusters: Floats  # centroids of the clusters that are drawn
    place: Callable[[Floats], Floats] | None  # (n, d) rows to (n, 2); None: no map


class _Space:
    """The encoder, the sample of every round, and the ground of the first round."""

    def __init__(self, rounds: OwnRounds, references: list[str], options: Options, spans: Spans) -> None:
        self.rounds, self.options, self.spans = rounds, options, spans
        self.sample = min(options.sample, *rounds.counts.values())
        with spans.span(rounds.rounds[0], rounds.arm, "encoder") as progress:
            self.encoder = _encoder(options.encoder)
            picked = [references[place] for place in evenly(len(references), options.sample)]
            self.real = self.encoder.embed(picked, progress) if picked else None
        self.ground: _Ground | None = None
        self.map_facts: dict[str, Any] = {"method": options.map}

    def values(self, round_: int, found: dict[str, list[dict[str, Any]]]) -> dict[str, Value]:
        """Metrics of the embedded sample; its clusters and points go to `found`."""
        from dces_core.stages.control import dispersion_centroids

        draw = rng_for(0, 0, "diagnose").choice(self.rounds.counts[round_], self.sample, replace=False)
        texts = tallies.pick(self.rounds.batches(round_), sorted(draw.tolist()))
        with self.spans.span(round_, self.rounds.arm, "embedding") as progress:
            embeddings = self.encoder.embed(texts, progress)
        own = dispersion_centroids(embeddings, seed_for(0, 0, "dispersion"))
        if self.ground is None:
            self.ground = self._fix(embeddings, own)
        self._place(round_, embeddings, texts, self.ground, found)
        near = undefined(ABSENT["nearest_reference"]) if self.real is None else nearest_reference(embeddings, self.real)
        return {
            "vendi": vendi(embeddings, PAIRWISE_TEXTS),
            "dispersion": dispersion(embeddings, own),
            "dispersion_frozen": dispersion(embeddings, self.ground.dispersion),
            "nearest_reference": near,
        }

    def _fix(self, first: Floats, centroids: Floats) -> _Ground:
        from dces_core.stages.cluster import spherical_kmeans

        directed = first[first.any(axis=1)]
        clusters = spherical_kmeans(directed, CLUSTER_COUNT, seed_for(0, 0, "clusters"))[1] if len(directed) else first[:0]
        basis = directed if self.real is None else np.concatenate([self.real, directed])
        place = None if self.options.map == "off" or len(basis) < 3 else _placing(basis, self.options.map)
        self.map_facts["fitted"] = len(basis) if place else 0
        return _Ground(centroids, clusters, place)

    def _place(self, round_: int, embeddings: Floats, texts: list[str], ground: _Ground, found: dict[str, list[dict[str, Any]]]) -> None:
        """Sizes of the first round's clusters, with the most central text of each, and the points of the map."""
        known = np.flatnonzero(embeddings.any(axis=1))
        if not len(known) or not len(ground.clusters):
            return
        near = embeddings[known] @ ground.clusters.T
        labels = near.argmax(axis=1)
        for cluster in range(len(ground.clusters)):
            members = np.flatnonzero(labels == cluster)
            central = texts[known[members[near[members, cluster].argmax()]]] if len(members) else None
            row = {"round": round_, "cluster": cluster, "texts": len(members), "share": len(members) / len(known)}
            found["clusters"].append({**row, "central": central and central[: tallies.KEPT_CHARACTERS]})
        if ground.place:
            drawn = evenly(len(known), MAP_TEXTS)
            spots = ground.place(embeddings[known[drawn]])
            found["points"] += [
                {"round": round_, "x": float(x), "y": float(y), "cluster": int(labels[place])}
                for (x, y), place in zip(spots, drawn, strict=True)
            ]


def _encoder(name: str) -> Encoder:
    from dces_core.engines.encoder import load_encoder

    if name == "hash":
        return load_encoder(name, "cpu")
    from dces_core.engines.hf import pick_device

    return load_encoder(name, str(pick_device("auto")))


def _placing(basis: Floats, method: str) -> Callable[[Floats], Floats]:
    """A map fitted on `basis` (n, d), never again: rows to (n, 2)."""
    if method == "pca":
        middle = basis.mean(axis=0)
        axes = np.linalg.svd(basis - middle, full_matrices=False)[2][:2]
        signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
        turned = axes * signs[:, None]
        return lambda part: np.asarray((part - middle) @ turned.T, np.float32)
    from dces_core.stages.cluster import load_umap

    settings = Map()  # type: ignore[call-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap announces its own single thread at fit
        reducer = load_umap().UMAP(
            n_components=2, metric="cosine", n_neighbors=min(settings.neighbors, len(basis) - 1), min_dist=settings.min_dist,
            random_state=seed_for(0, 0, "map") % 2**32, n_jobs=1,
        ).fit(basis)  # fmt: skip

    def transform(part: Floats) -> Floats:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(reducer.transform(part), np.float32)

    return transform


# a model ----------------------------------------------------------------------------------------------------------------


def _scorer(options: Options) -> LanguageModel | None:
    """The model to score with; None where none is given."""
    if not options.model:
        return None
    if options.model == "fake":
        from dces_core.engines.fake import FakeModel

        return FakeModel()
    from dces_core import models

    models.check(options.model)
    from dces_core.engines.hf import HFModel

    return HFModel(parse({"model": options.model}))


def _scored(rounds: OwnRounds, round_: int, fewest: int, scorer: LanguageModel | None, spans: Spans) -> Value:
    """Perplexity of SCORED_TEXTS texts of the round, of SCORED_TOKENS tokens each at most, under the model."""
    if scorer is None:
        return undefined(ABSENT["ref_ppl"])
    texts = tallies.pick(rounds.batches(round_), evenly(rounds.counts[round_], min(SCORED_TEXTS, fewest)))
    ids = [(scorer.start() + scorer.encode_text(text))[: min(SCORED_TOKENS, scorer.context)] for text in texts]
    with spans.span(round_, rounds.arm, "scoring") as progress:
        scores = scorer.score([Example(part[:1], part[1:]) for part in ids if len(part) > 1], progress=progress)
    return probability.perplexity(scores.logprob, NO_GENERATED_TOKENS)
