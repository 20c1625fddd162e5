"""What a run works with: its settings, engine, encoders and data; and how a stage is done once, resumed, and its weights found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dces_core import data, machine, ranks
from dces_core.config import RunConfig, Train
from dces_core.data import Corpus, Pair
from dces_core.engines import memory
from dces_core.engines.base import Encoder, Example, LanguageModel, TokenScores, require_finite
from dces_core.errors import NotFinite, RunFailed
from dces_core.events import Events, Progress
from dces_core.seeds import seed_for
from dces_core.stage import Draft, Stage
from dces_core.store import SHARED, WEIGHTS, Run

Make = Callable[[Draft, Progress], None]


class Tools:
    """What a selection works with: settings, real text, engine and encoder. Heavy parts are loaded when they are first needed."""

    def __init__(self, config: RunConfig, train: Corpus, say: Callable[[str], None]) -> None:
        self.config, self.train, self.say = config, train, say

    @cached_property
    def engine(self) -> LanguageModel:
        """The language model."""
        self.say(f"loading {self.config.model if self.config.engine == 'hf' else 'the fake engine'}")
        made = self._open()
        made.note = self.say
        return made

    def _open(self) -> LanguageModel:
        if self.config.engine == "fake":
            from dces_core.engines.fake import FakeModel

            return FakeModel()
        if together := ranks.joined():
            from dces_core.engines.sharded import ShardedModel

            return ShardedModel(self.config, together)
        from dces_core.engines.hf import HFModel

        return HFModel(self.config)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that selection uses."""
        from dces_core.engines.encoder import load_encoder

        return load_encoder(self.config.encoder.name, self.engine.device)

    # text to tokens -------------------------------------------------------------------------------------------------

    def example(self, corpus: Corpus, pair: Pair) -> Example:
        """A real pair as tokens, its reference without an end token; a text's first data.context_tokens are its prompt.

        What is longer than eval.block_tokens or the model's context is cut.
        """
        limit = min(self.config.eval.block_tokens, self.engine.context)
        if corpus.kind == "pairs":
            prompt = self.prompt(pair.prompt)
            return Example(prompt, self.engine.encode_text(pair.reference)[: max(0, limit - 1 - len(prompt))])  # - 1: an end token
        ids = (self.engine.start() + self.engine.encode_text(pair.reference))[:limit]
        cut = max(1, min(self.config.data.context_tokens, len(ids) // 2))
        return Example(ids[:cut], ids[cut:])

    def training_example(self, corpus: Corpus, pair: Pair) -> Example:
        """As `example`; a reference that was not cut ends with the end token."""
        example = self.example(corpus, pair)
        whole = corpus.kind == "pairs" and len(example.response) == len(self.engine.encode_text(pair.reference))
        return Example(example.prompt, [*example.response, self.engine.end]) if whole else example

    def prompt(self, text: str) -> list[int]:
        """A prompt as tokens, data.instruction behind it."""
        return self.engine.encode_prompt(f"{text} {self.config.data.instruction}".strip())


@contextmanager
def located(round_: int, arm: str, stage: str) -> Iterator[None]:
    """Where a stage fails for want of memory or for a number that is not finite: say which, and the ways out."""
    where = f"round {round_}{'' if arm == SHARED else f' of arm {arm}'}, {stage}"
    try:
        yield
    except NotFinite as error:
        fork = f", or fork from round {round_ - 1} with it" if round_ else ""
        raise RunFailed(f"{where}: {error.what}; {error.change}, then launch again{fork}.") from error
    except Exception as error:
        if not memory.ran_out(error):
            raise
        raise RunFailed(f"{where}: out of memory: {memory.ADVICE}.") from error


class Lab(Tools):
    """One run at work."""

    def __init__(self, run: Run, events: Events) -> None:
        config = run.config
        super().__init__(config, data.load_train(config), events.note)
        self.run, self.events = run, events
        self.tests = data.load_tests(self.config)
        self.probes = data.load_probes(self.config)
        self._made: dict[str, Callable[[], None]] = {}
        self._loaded: str | None = "base"

    # stages ---------------------------------------------------------------------------------------------------------

    def do(self, round_: int, arm: str, name: str, after: list[Stage], make: Make) -> Stage:
        """The stage, made now unless it was finished from the same inputs before."""
        stage = self.run.stage(round_, arm, name)
        parts = [self.config.digest(), name, *(before.digest for before in after)]
        inputs = hashlib.sha256("/".join(parts).encode()).hexdigest()

        def work() -> None:
            with located(round_, arm, name), self.events.span(round_, arm, name) as progress, self.run.commit(stage, inputs) as draft:
                make(draft, progress)
            machine.return_memory()

        self._made[str(stage.path)] = work
        if not stage.valid(inputs):
            for file in stage.damaged():
                self.events.note(f"round-{round_:02d}/{arm}/{name}/{file} is damaged: doing its stage again", damaged=file)
            work()
        return stage

    def load(self, weights: Stage | None) -> LanguageModel:
        """The engine with these weights as its current model; None: M_b. Weights that were deleted are made again."""
        wanted = str(weights.path) if weights else "base"
        if weights and not weights.file(WEIGHTS).is_file():
            self.events.note(f"the weights of {weights.path.parent.name} {weights.path.parent.parent.name} are gone; training them again")
            self._made[wanted]()
        if self._loaded != wanted:
            self._loaded = None
            self.engine.load(weights.file(WEIGHTS) if weights else None)
            self._loaded = wanted
        return self.engine

    def freeze(self, weights: Stage | None) -> None:
        """Make these weights the frozen M_0; None: M_b."""
        self.engine.freeze(weights.file(WEIGHTS) if weights else None)

    def base_scores(self, examples: list[Example]) -> TokenScores:
        """Scores by M_b, whatever model is current; the current one is put back."""
        before = self._loaded
        self.engine.load(None)
        scores = self.engine.score(examples)
        self._loaded = None
        if before and before != "base":
            self.engine.load(Path(before) / WEIGHTS)
        self._loaded = before
        return scores

    def fit(self, examples: list[Example], settings: Train, round_: int, progress: Progress) -> list[float]:
        """Fine-tune the engine's current model; the loss of each step. Raises NotFinite."""
        self.trained(None)
        losses = self.engine.train(examples, settings, seed_for(self.config.seed, round_, "train"), progress)
        if (together := ranks.joined()) and (found := together.sharding):
            text = "trained on {world} processes over {backend}: {kind}, {blocks} blocks wrapped, {weights} weights split".format(**found)
            self.events.note(text, sharding=found)
        for step, loss in enumerate(losses, 1):
            require_finite("training loss", loss, step, len(losses), settings.lr)
        return losses

    def trained(self, stage: Stage | None) -> None:
        """The engine's current model has just become these weights (None: it is in between)."""
        self._loaded = str(stage.path) if stage else None

    # parts ----------------------------------------------------------------------------------------------------------

    @cached_property
    def judge(self) -> Callable[[list[str]], NDArray[np.float32]]:
        """Texts to unit rows, by an encoder that selection does not use."""
        from dces_core.engines.encoder import load_judge

        judge = load_judge(self.config.encoder.judge, self.run.threads)
        return judge.embed if judge else self.engine.embed_hidden

    @cached_property
    def real_embeddings(self) -> NDArray[np.float32]:
        """(references, d) of the real training split."""
        return self.encoder.embed([pair.reference for pair in self.train.pairs])
