"""One table: what each arm generates, selects, edits, filters and trains on. To add an arm, add a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dces_core.config import ArmName, Edit, Generate, Train

Rule = Literal["random", "center-edge", "ppl-low", "ppl-high", "ppl-band", "semdedup", "none"]
#: ToEdit as published (arXiv 2412.14689); an arm of its own, so the recipe's editing settings do not reach it.
TOEDIT = Edit(unit="token", threshold=0.99, top_k=8, temperature=1.0, share=1.0, exclude_original=False, whole_words=False)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Arm:
    """A rule for turning a round's pool into N training samples. The defaults are plain self-training."""

    name: ArmName
    title: str
    source: str  # where the rule comes from: [page], [source] or [ours]
    decode: Literal["recipe", "untruncated", "controlled"] = "recipe"  # how the pool is sampled; controlled: its temperature is
    gate: bool = False  # reject empty, looping and letterless samples before clustering
    select: Rule = "random"
    edit: Literal["none", "text", "targets"] = "none"  # what token-level editing changes
    edits: Literal["center", "all", "share"] = "center"  # which picks are edited; share: 1 - controller.a0 of them, at random
    constants: Edit | None = None  # published editing constants, in place of the recipe's
    filter: bool = False  # quality filter of edge samples
    dynamic: bool = True  # False: every controlled quantity stays at its constant
    truncates: bool = False  # truncated cross-entropy, whatever train.loss says
    real: float = 0.0  # share of the N samples that is fresh real pairs
    trains: bool = True
    ranked: bool = True  # False: a reference row
    draw: str = "pick"  # label of the random stream of the pick

    @property
    def shares_pool(self) -> bool:
        """Whether round 1's pool is the shared one: the arm decodes it as the others do."""
        return self.decode != "untruncated"

    def decoding(self, settings: Generate, temperature: float | None) -> Generate:
        """How a round's pool is sampled; `temperature`: what this arm's controller asked for the round before, where it did."""
        if self.decode == "untruncated":
            return settings.model_copy(update={"decoding": "sample", "temperature": 1.0, "top_p": 1.0, "top_k": 0})
        if self.decode == "controlled" and temperature is not None:
            return settings.model_copy(update={"temperature": temperature})
        return settings

    def editing(self, settings: Edit) -> Edit:
        """The editing settings of this arm."""
        return self.constants or settings

    def training(self, settings: Train) -> Train:
        """The training settings of this arm."""
        return settings.model_copy(update={"loss": "truncated"}) if self.truncates else settings

    def real_pairs(self, settings: Train, n: int) -> tuple[int, int]:
        """How many of a round's `n` samples are real: the same ones every round, and fresh ones (of the arm and of the regime)."""
        share = settings.real_share
        fresh = min(n, round((self.real + share * (settings.regime == "fresh-real")) * n))
        return min(n - fresh, round(share * n) if settings.regime == "fixed-real" else 0), fresh


def _table(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


ARMS: dict[str, Arm] = _table(
    Arm("plain", "Plain self-training: the pool cut to N at random.", "[page]"),
    Arm("random", "The same distribution as plain by another draw: the noise floor.", "[page]", draw="pick-again"),
    Arm("ppl-low", "The N samples of lowest perplexity under the scorer of the split.", "[page]", select="ppl-low"),
    Arm("ppl-high", "The N samples of highest perplexity (arXiv 2410.12341).", "[source]", select="ppl-high"),
    Arm("ppl-band", "The N samples in the middle of the perplexities.", "[page]", select="ppl-band"),
    Arm("semdedup", "SemDeDup: near-duplicates removed until N are left (arXiv 2303.09540).", "[source]", select="semdedup"),
    Arm("toedit", "N random samples, all edited by ToEdit with its constants (arXiv 2412.14689).", "[source]",
        edit="text", edits="all", constants=TOEDIT, dynamic=False),
    Arm("dces", "Center samples edited in the text, edge samples filtered, their ratio controlled.", "[page]",
        gate=True, select="center-edge", edit="text", filter=True),
    Arm("dces-targets", "As dces, but editing changes only the training labels.", "[ours]",
        gate=True, select="center-edge", edit="targets", filter=True),
    Arm("dces-no-edit", "As dces, without token-level editing.", "[page]",
        gate=True, select="center-edge", filter=True),
    Arm("dces-static", "As dces, with every controlled quantity at its constant.", "[page]",
        gate=True, select="center-edge", edit="text", filter=True, dynamic=False),
    Arm("dces-no-filter", "As dces, without the quality filter of edge samples.", "[ours]",
        gate=True, select="center-edge", edit="text"),
    Arm("dces-no-gate", "As dces, without the gate before clustering.", "[ours]",
        select="center-edge", edit="text", filter=True),
    Arm("edit-random", "N random samples, a share of them edited as in dces-targets: no clusters, no center or edge.", "[ours]",
        gate=True, edit="targets", edits="share"),
    Arm("plain-t1", "As plain, from a pool sampled at temperature 1 without truncation.", "[ours]", decode="untruncated"),
    Arm("plain-tctl", "As plain; the feedback loop moves the sampling temperature of the next pool.", "[ours]", decode="controlled"),
    Arm("tce", "As plain; confident tokens get no loss (arXiv 2509.08972).", "[source]", truncates=True),
    Arm("real10", "Nine tenths of plain's picks and one tenth fresh real pairs.", "[source]", real=0.1),
    Arm("frozen", "M_0 untouched: a reference row, never ranked.", "[ours]", select="none", trains=False, ranked=False),
    Arm("real", "N fresh real pairs every round: a reference row, never ranked.", "[ours]", select="none", real=1.0, ranked=False),
)  # fmt: skip
