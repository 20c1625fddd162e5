from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from pools import make_inputs

from dces_core.arms import ARMS
from dces_core.config import Edit, Generate
from dces_core.engines.base import Example, Generation, LanguageModel, Proposal
from dces_core.stages.edit import edit, edit_responses, rewrite_ends, with_edits
from dces_core.stages.select import select

END, HIDDEN = 0, 1
WORDS = range(2, 10)  # 2..5 start a word, 6..9 continue one


class Resampler:
    """Every token has probability `p`; the draw keeps it below `p` and otherwise takes a fixed or a cyclic other token."""

    end = END

    def __init__(self, p: float = 0.5, draw: int | None = None) -> None:
        self.p, self.draw = p, draw
        self.contexts: list[list[int]] = []

    def resample(self, examples: list[Example], settings: Edit, temperature: float, uniforms: list[NDArray[np.float64]]) -> list[Proposal]:
        self.contexts = [example.response for example in examples]
        proposals = []
        for example, draws in zip(examples, uniforms, strict=True):
            tokens = np.array(example.response, np.int64)
            other = np.full_like(tokens, self.draw) if self.draw is not None else 2 + (tokens - 1) % 8
            drawn = np.where(draws < self.p, tokens, other)
            proposals.append(Proposal(np.full(len(tokens), self.p, np.float32), drawn))
        return proposals

    def continues_word(self) -> NDArray[np.bool_]:
        return np.arange(10) >= 6

    def decode(self, ids: list[int]) -> str:
        return "".join(self.piece(token) for token in ids if token != HIDDEN)

    def piece(self, token: int) -> str:
        return "<end>" if token == END else f" w{token}" if token < 6 else f"c{token}"


def run(
    examples: list[Example], engine: Resampler | None = None, mode: Any = "text", seed: int = 3, keys: Any = None, **settings: Any
) -> Any:
    options = Edit(**{"share": 1.0, "share_targets": 1.0, "whole_words": False, "labels": "draw", **settings})
    return edit_responses(cast(LanguageModel, engine or Resampler()), examples, options, mode, 1.0, seed, keys)


def responses(n: int = 4, length: int = 12) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example([2], rng.integers(2, 10, length).tolist()) for _ in range(n)]


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 0.99, 1.0])
def test_at_temperature_one_the_change_rate_is_one_minus_p(p: float) -> None:
    result = run(responses(50, 400), Resampler(p))
    flagged, changed = result.flagged.sum(), result.changed.sum()
    assert flagged == 50 * 399
    assert abs(changed / flagged - (1 - p)) <= 4 * (p * (1 - p) / flagged) ** 0.5


def test_edits_describe_the_difference() -> None:
    examples = responses()
    result = run(examples)
    for before, after, edits, changed in zip(examples, result.examples, result.edits, result.changed, strict=True):
        different = [i for i, (a, b) in enumerate(zip(before.response, after.response, strict=True)) if a != b]
        assert [found["position"] for found in edits] == different and len(edits) == changed
        for found in edits:
            assert found["before"] == Resampler().piece(before.response[found["position"]])
            assert found["after"] == Resampler().piece(after.response[found["position"]])
        assert after.labels is None and after.prompt == before.prompt
        assert before.response[0] == after.response[0], "the first token stays"


def test_targets_mode_changes_labels_only() -> None:
    examples = responses()
    result = run(examples, mode="targets")
    assert [example.response for example in result.examples] == [example.response for example in examples]
    labels = [example.labels for example in result.examples]
    assert labels == [example.response for example in run(examples).examples], "the same draws as in text mode"


def test_share_caps_the_flagged_tokens_of_each_mode() -> None:
    assert run(responses(20, 10), share=0.25).flagged.tolist() == [2] * 20
    assert run(responses(20, 10), mode="targets", share_targets=0.6).flagged.tolist() == [6] * 20
    assert run(responses(5, 3), share=0.25).flagged.tolist() == [0] * 5
    places = [edit["position"] for edits in run(responses(400, 10), Resampler(0.0), share=0.1).edits for edit in edits]
    assert len(places) == 400 and set(places) == set(range(1, 10)), "positions are chosen at random"


def test_threshold_spares_improbable_tokens() -> None:
    assert run(responses(), Resampler(0.98), threshold=0.99).flagged.sum() == 0
    assert run(responses(4, 12), Resampler(0.99), threshold=0.99 - 1e-6).flagged.tolist() == [11] * 4


def test_toedit_flags_every_confident_token_but_the_first_and_the_end() -> None:
    literal = ARMS["toedit"].editing(Edit(share=0.1, temperature=1.5))
    assert (literal.threshold, literal.top_k, literal.temperature, literal.exclude_original) == (0.99, 8, 1.0, False)
    for p, flagged in ((0.989, 0), (0.991, 11)):
        engine = Resampler(p)
        result = edit_responses(cast(LanguageModel, engine), responses(), literal, "text", literal.temperature, 3)
        assert result.flagged.tolist() == [flagged] * 4
    assert edit_responses(cast(LanguageModel, Resampler(1.0)), [Example([2], [2, 3, END])], literal, "text", 1.0, 3).flagged.tolist() == [1]


def test_text_mode_spares_the_end_token_and_never_writes_a_hidden_one() -> None:
    ended = [Example([2], [2, 3, 4, END])]
    assert run(ended, Resampler(0.0, draw=5)).examples[0].response == [2, 5, 5, END]
    for hidden in (END, HIDDEN):
        result = run(ended, Resampler(0.0, draw=hidden))
        assert result.examples == ended and result.flagged.tolist() == [2] and result.changed.tolist() == [0]
    assert run(ended, Resampler(0.0, draw=5), mode="targets").examples[0].labels == [2, 5, 5, 5]


def test_whole_words_keeps_continuations_continuing() -> None:
    example = [Example([2], [2, 6, 3, 7])]
    assert run(example, Resampler(0.0, draw=5), whole_words=True).examples[0].response == [2, 6, 5, 7]
    assert run(example, Resampler(0.0, draw=8), whole_words=True).examples[0].response == [2, 8, 8, 8]
    assert run(example, Resampler(0.0, draw=5), whole_words=False).examples[0].response == [2, 5, 5, 5]
    assert run(example, Resampler(0.0, draw=5), mode="targets", whole_words=True).examples[0].labels == [2, 5, 5, 5]


def test_one_pass_over_the_original_tokens() -> None:
    engine, examples = Resampler(0.0), responses()
    run(examples, engine)
    assert engine.contexts == [example.response for example in examples]


def test_draws_belong_to_the_sample_not_to_its_place_in_the_batch() -> None:
    examples = responses(6)
    whole = run(examples, keys=[10, 11, 12, 13, 14, 15], share=0.3)
    part = run([examples[4], examples[1]], keys=[14, 11], share=0.3)
    assert part.examples == [whole.examples[4], whole.examples[1]]
    assert run(examples, seed=4).examples != run(examples, seed=3).examples


def test_nothing_and_empty_responses() -> None:
    assert run([]).examples == []
    result = run([Example([2], []), Example([2], [3]), Example([2], [END])])
    assert result.flagged.tolist() == result.changed.tolist() == [0, 0, 0]
    assert result.edits == [[], [], []]


def test_edits_are_written_into_the_table() -> None:
    found = select(make_inputs("dces"))
    examples = [Example([2], [2, 3, 4]) for _ in found.edit]
    result = run(examples, Resampler(0.0, draw=5))
    samples = with_edits(found.samples, found.edit, result, ["edited"] * len(examples))
    row = samples.row(int(found.edit[0]), named=True)
    assert (row["flagged"], row["changed"], row["trained_text"]) == (2, 2, "edited")
    assert row["edits"][0] == {"position": 1, "before": " w3", "after": " w5"}
    untouched = np.setdiff1d(np.arange(len(samples)), found.edit)
    assert samples[untouched.tolist()].equals(found.samples[untouched.tolist()])
    assert samples.schema == found.samples.schema


# suffix -----------------------------------------------------------------------------------------------------------------


class Writer(Resampler):
    """Goes on after any prompt with `length` tokens that its noise chooses, ended where the limit leaves room."""

    def __init__(self, length: int = 4) -> None:
        super().__init__()
        self.length = length
        self.asked: list[tuple[list[list[int]], Generate, list[int], str]] = []

    def generate(self, prompts: Any, settings: Generate, uniforms: Any, limits: Any, which: str) -> list[Generation]:
        self.asked.append((prompts, settings, limits, which))
        sizes = [min(self.length, limit) for limit in limits]
        nothing = np.zeros(0, np.float32)
        return [
            Generation((2 + (noise[:size] * 8).astype(int)).tolist(), size < limit, nothing, nothing)
            for size, limit, noise in zip(sizes, limits, uniforms, strict=True)
        ]


def rewrite(examples: list[Example], engine: Writer | None = None, limit: int = 12, keys: Any = None, **settings: Any) -> Any:
    options, decoding = Edit(**{"share": 0.5, **settings}), Generate(max_new_tokens=limit, top_p=0.5, top_k=3)
    chosen = range(len(examples)) if keys is None else keys
    return rewrite_ends(cast(LanguageModel, engine or Writer()), examples, options, decoding, 1.3, 3, chosen)


def test_a_suffix_is_drawn_after_what_was_kept_from_the_whole_distribution() -> None:
    examples, engine = [Example([9, 9], [2, 3, 4, 5, 6, 7, 8]), Example([9], [2, 3, 4, END])], Writer()
    result = rewrite(examples, engine, model="frozen")
    ((prompts, settings, limits, which),) = engine.asked
    assert prompts == [[9, 9, 2, 3, 4, 5], [9, 2, 3]] and limits == [8, 10] and which == "frozen"
    assert (settings.decoding, settings.temperature, settings.top_p, settings.top_k) == ("sample", 1.3, 1.0, 0)
    assert result.flagged.tolist() == [3, 2], "half of the tokens, the end token counted"
    for before, after in zip(examples, result.examples, strict=True):
        kept = len(before.response) // 2 + len(before.response) % 2
        assert after.response[:kept] == before.response[:kept] and after.labels is None
        assert len(after.response) == kept + 5 and after.response[-1] == END


def test_a_suffix_that_meets_the_limit_has_no_end_token() -> None:
    result = rewrite([Example([9], [2, 3, 4, 5])], Writer(length=50), limit=6)
    assert len(result.examples[0].response) == 6 and END not in result.examples[0].response


def test_edits_of_a_suffix_describe_the_difference_also_beyond_the_old_end() -> None:
    (before,) = examples = [Example([9], [2, 3, 4, END])]
    result = rewrite(examples)
    after = result.examples[0].response
    for edit_ in result.edits[0]:
        place = edit_["position"]
        assert edit_["after"] == Writer().piece(after[place])
        assert edit_["before"] == (Writer().piece(before.response[place]) if place < 4 else "")
    assert {edit_["position"] for edit_ in result.edits[0]} >= set(range(4, len(after)))
    assert result.changed[0] == sum(edit_["position"] < 4 for edit_ in result.edits[0]) <= result.flagged[0]


def test_a_suffix_belongs_to_the_sample_and_short_responses_stay() -> None:
    examples = [Example([9], [2, 3, 4, 5, 6, 7]), Example([9], [3]), Example([9], []), Example([9], [4, 5, 6, 7])]
    whole = rewrite(examples, keys=[10, 11, 12, 13])
    assert whole.examples[1:3] == examples[1:3] and whole.flagged.tolist() == [3, 0, 0, 2]
    assert rewrite([examples[3]], keys=[13]).examples == [whole.examples[3]]
    assert rewrite([]).examples == [] and rewrite(examples[1:3]).edits == [[], []]
    assert rewrite([examples[0]], share=1.0).flagged.tolist() == [5], "the first token stays"


def test_the_unit_chooses_and_targets_are_single_tokens() -> None:
    examples = [Example([9], [2, 3, 4, 5])]
    for mode, unit, calls in (("text", "suffix", 1), ("text", "token", 0), ("targets", "suffix", 0)):
        engine = Writer()
        edit(cast(LanguageModel, engine), examples, Edit(unit=unit), mode, Generate(), 1.0, 0, [0])  # type: ignore[arg-type]
        assert len(engine.asked) == calls
    assert ARMS["toedit"].editing(Edit()).unit == "token"


# soft targets -----------------------------------------------------------------------------------------------------------


def test_soft_targets_flag_what_a_draw_would_and_keep_the_text() -> None:
    examples = [*responses(6, 10), Example([2], [3]), Example([2], [])]
    options, keys = Edit(share_targets=0.6), list(range(20, 28))
    drawn = edit_responses(cast(LanguageModel, Resampler(0.0)), examples, options, "targets", 1.0, 3, keys)
    engine = Resampler()
    result = edit(cast(LanguageModel, engine), examples, options, "targets", Generate(), 1.2, 3, keys)
    assert result.flagged.tolist() == result.changed.tolist() == drawn.flagged.tolist() == [6] * 6 + [0, 0]
    for before, after, hard in zip(examples, result.examples, drawn.examples, strict=True):
        different = {i for i, (a, b) in enumerate(zip(before.response, hard.labels or before.response, strict=True)) if a != b}
        assert (after.prompt, after.response, after.labels) == (before.prompt, before.response, None)
        own = after.soft.positions if after.soft else []
        assert set(own) == different or (own[0] == 0 and len(different - set(own)) == 1), "the same, but that the first may be among them"
        assert after.soft is None or (after.soft.temperature, after.soft.top_k) == (1.2, 0)
    assert engine.contexts == [], "without a threshold no pass is made"
    assert edit(cast(LanguageModel, engine), [], options, "targets", Generate(), 1.2, 3, []).examples == []


def test_soft_targets_respect_the_threshold() -> None:
    for p, flagged in ((0.98, 0), (0.995, 12)):
        found = edit(
            cast(LanguageModel, Resampler(p)), responses(), Edit(threshold=0.99, share_targets=1.0), "targets", Generate(), 1.0, 3, range(4)
        )
        assert found.flagged.tolist() == [flagged] * 4
