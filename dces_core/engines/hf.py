"""Any causal language model of transformers: smollm2-135m-instruct by default, a hub id, a local folder, or a GGUF file.

The current model has fp32 masters for training and a half-precision copy for sampling and scoring (where the hardware has
bf16); the frozen M_0 has the copy only.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from dces_core import models
from dces_core.config import Edit, Generate, RunConfig, Train
from dces_core.engines import adapters, trainer
from dces_core.engines.base import Example, Floats, Generation, Proposal, TokenScores, Which, silent, unheard
from dces_core.engines.decode import ATTENTION, Decoder
from dces_core.engines.lean import LeanBody, lean_body
from dces_core.engines.teacher import Key, Teacher, divergence
from dces_core.errors import UserError
from dces_core.events import Note, Progress


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu. Raises UserError for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise UserError(f"device = {name!r} is not available here; use one of: auto, {', '.join(k for k, v in available.items() if v)}.")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 here."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu" or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response, the one that training appends first."""
    found = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config):
        value = getattr(config, "eos_token_id", None)
        found += value if isinstance(value, list) else [value]
    ends = list(dict.fromkeys(token for token in found if token is not None))
    if not ends:
        raise UserError(f"model = {model.name_or_path!r} has no end token; set eos_token in its tokenizer.")
    return ends


def context_of(config: Any) -> int:
    """Longest sequence in tokens: within a sliding window, where the model has one, full attention is the same attention."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min([int(limit) for limit in limits if limit], default=1 << 20)


class HFModel:
    """See LanguageModel."""

    def __init__(self, config: RunConfig) -> None:
        self.note: Note = unheard
        self._device = pick_device(config.device)
        self.device = str(self._device)
        self.name = config.model
        self.tokenizer, self._master = open_model(config.model)
        self._master.to(self._device)
        self._train = config.train
        if config.train.optimizer == "adamw-8bit" and self._device.type != "cuda":
            raise UserError(f"train.optimizer = 'adamw-8bit' needs device = 'cuda' (now {self.device!r}); use 'adamw'.")
        self._adapter: adapters.State | None = None  # what has been merged into the base weights of the master
        self._base = copy.deepcopy(self._master.state_dict()) if config.rounds or config.train.lora_rank else {}
        precision = config.train.precision
        self._bf16 = has_bf16(self._device) if precision == "auto" else precision == "bf16"
        self._copy = self._half(self._master)
        self._frozen = self._half(self._master, share=False)
        self._packed: dict[Which, LeanBody | None] = {}
        self._seen: dict[Key, torch.Tensor] = {}  # hidden states of the frozen model
        self.parameters = sum(p.numel() for p in self._master.parameters())
        self.vocabulary = int(self._master.get_output_embeddings().weight.shape[0])
        self.context = context_of(self._master.config)
        self._ends = end_tokens(self._master, self.tokenizer)
        self.end = self._ends[0]
        chat = bool(getattr(self.tokenizer, "chat_template", None))
        if config.data.template == "chat" and not chat:
            raise UserError(f"data.template = 'chat', but the tokenizer of {config.model!r} has no chat template; use 'auto' or 'plain'.")
        self._chat = chat and config.data.template != "plain"

    def _half(self, master: Any, share: bool = True) -> Any:
        """The model that samples and scores: a bf16 copy, or the fp32 master itself where it may be shared."""
        if not self._bf16 and share:
            return master
        half = copy.deepcopy(master)
        for parameter in half.parameters():  # parameters only: rotary frequencies in bf16 would shift the positions
            parameter.data = parameter.data.to(torch.bfloat16 if self._bf16 else torch.float32)
        return half.eval().requires_grad_(False)

    # text -----------------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: str) -> list[int]:
        """Through the chat template where there is one (reasoning models answer at once); otherwise the tokenizer's start token,
        the prompt and a line break.
        """
        if self._chat:
            message = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False, enable_thinking=False)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self.start() + self.encode_text(prompt + "\n")

    def start(self) -> list[int]:
        """What the tokenizer puts before every text."""
        added = self.tokenizer("")["input_ids"]
        return [token for token in added if token not in self._ends or token == self.tokenizer.bos_token_id][:1]

    def encode_text(self, text: str) -> list[int]:
        """No special tokens are added, and none is recognised inside the text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Special tokens are left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def piece(self, token: int) -> str:
        """One token as it is written."""
        return self._pieces[token]

    def continues_word(self) -> NDArray[np.bool_]:
        """(vocabulary,) by how each token is spelled."""
        return np.array([piece[:1].isalnum() for piece in self._pieces])

    @cached_property
    def _pieces(self) -> list[str]:
        """Every token of the vocabulary as it is written; the space that SentencePiece decoders drop in front is put back."""
        known = min(len(self.tokenizer), self.vocabulary)
        raw = self.tokenizer.convert_ids_to_tokens(range(known))
        texts = self.tokenizer.batch_decode([[i] for i in range(known)])
        pieces = [f" {text}" if (mark or "")[:1] == "\u2581" and text[:1] != " " else text for mark, text in zip(raw, texts, strict=True)]
        return pieces + [""] * (self.vocabulary - known)

    # weights --------------------------------------------------------------------------------------------------------

    def load(self, path: Path | None) -> None:
        """fp32 weights or an adapter from a safetensors file; None: the base model. Raises UserError where it is the other of the two."""
        if self._train.lora_rank:
            self._merge(adapters.read(path, self._train) if path else None)
        else:
            self._master.load_state_dict(self._read(path))
        self._refresh()

    def freeze(self, path: Path | None) -> None:
        """As `load`, for M_0."""
        self._seen.clear()
        self._packed.pop("frozen", None)
        self._frozen.load_state_dict(self._read(path))

    def save(self, path: Path) -> None:
        """Tied weights are written once; with LoRA the adapter alone."""
        if self._adapter is not None:
            save_file(self._adapter, path, metadata={"format": "pt"})
            return
        seen: dict[int, str] = {}
        state = {}
        for name, tensor in self._master.state_dict().items():
            if seen.setdefault(tensor.data_ptr(), name) == name:
                state[name] = tensor.detach().cpu().contiguous()
        save_file(state, path, metadata={"format": "pt"})

    def _read(self, path: Path | None) -> dict[str, torch.Tensor]:
        if path is None:
            return self._base
        state = adapters.read(path, self._train)
        if self._train.lora_rank:
            current = self._adapter
            self._merge(state)
            state = copy.deepcopy(self._master.state_dict())
            self._merge(current)
        return {name: state[name] if name in state else state[self._tied(name, state)] for name in self._master.state_dict()}

    def _tied(self, name: str, state: dict[str, torch.Tensor]) -> str:
        own = self._master.state_dict()
        return next(other for other in state if own[other].data_ptr() == own[name].data_ptr())

    def _merge(self, adapter: adapters.State | None) -> None:
        """Give the master the base weights with this adapter."""
        self._master.load_state_dict(self._base)
        if adapter is not None:
            adapters.merge(self._master, self._train, adapter)
        self._adapter = adapter

    def _refresh(self) -> None:
        self._packed.pop("current", None)
        if self._copy is not self._master:
            with torch.no_grad():
                for half, master in zip(self._copy.parameters(), self._master.parameters(), strict=True):
                    half.copy_(master)

    # the four verbs -------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: list[list[int]],
        settings: Generate,
        uniforms: NDArray[np.float64],
        progress: Progress = silent,
        limits: list[int] | None = None,
        which: Which = "current",
    ) -> list[Generation]:
        """See LanguageModel. Raises UserError for a prompt that leaves no room for the response."""
        for prompt, limit in zip(prompts, limits or [settings.max_new_tokens] * len(prompts), strict=True):
            if len(prompt) + limit > self.context:
                raise UserError(
                    f"a prompt has {len(prompt)} tokens; with generate.max_new_tokens = {limit} it exceeds the "
                    f"model's context of {self.context}: shorten the prompt or lower generate.max_new_tokens."
                )
        if settings.decoding == "beam":
            assert limits is None and which == "current", "beam search has one limit, and one model"
            return self._beam(prompts, settings, progress)
        model = self._copy if which == "current" else self._frozen
        return Decoder(model, self._device, self._ends, self._lean(which), self.note).generate(
            prompts, settings, uniforms, progress, limits
        )

    def _beam(self, prompts: list[list[int]], settings: Generate, progress: Progress) -> list[Generation]:
        """Beam search by transformers; probabilities by the teacher."""
        texts: list[list[int]] = []
        ended = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=self._device)
            with torch.inference_mode():
                out = self._copy.generate(
                    ids, attention_mask=torch.ones_like(ids), num_beams=settings.beams, do_sample=False,
                    max_new_tokens=settings.max_new_tokens, pad_token_id=self.end, eos_token_id=self._ends,
                )  # fmt: skip
            response = out[0, len(prompt) :].tolist()
            stop = next((i for i, token in enumerate(response) if token in self._ends), len(response))
            texts.append(response[:stop])
            ended.append(stop < len(response))
            progress(len(texts), len(prompts))
        scores = self.score([Example(prompt, text) for prompt, text in zip(prompts, texts, strict=True)])
        edges = np.cumsum([len(text) for text in texts])[:-1]
        rows = zip(texts, ended, np.split(scores.logprob, edges), np.split(scores.entropy, edges), strict=True)
        return [Generation(ids, end, logprob, entropy) for ids, end, logprob, entropy in rows]

    def score(self, examples: list[Example], which: Which = "current", progress: Progress = silent) -> TokenScores:
        """See LanguageModel."""
        return self._teacher(which).score(examples, progress)

    def next_tokens(self, prompts: list[list[int]], k: int) -> list[list[tuple[int, float]]]:
        """See LanguageModel."""
        return self._teacher("current").next_tokens(prompts, k)

    def divergence(self, examples: list[Example]) -> Floats:
        """See LanguageModel."""
        return divergence(self._teacher("frozen"), self._teacher("current"), examples, self._seen)

    def resample(self, examples: list[Example], settings: Edit, temperature: float, uniforms: list[NDArray[np.float64]]) -> list[Proposal]:
        """See LanguageModel."""
        return self._teacher(settings.model).resample(examples, settings, temperature, uniforms)

    def train(self, examples: list[Example], settings: Train, seed: int, progress: Progress = silent) -> list[float]:
        """See LanguageModel."""
        teacher = self._teacher("frozen") if any(example.soft for example in examples) else None
        model, wrapped = self._master.requires_grad_(True), None
        body, head = model.base_model, model.get_output_embeddings()
        if settings.lora_rank:
            model.load_state_dict(self._base)
            wrapped = adapters.attach(model, settings, seed, self._adapter)
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            self.note(f"adapters of rank {settings.lora_rank} train: {trained:,} parameters beside {self.parameters:,} frozen ones")
        if settings.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        try:
            losses = trainer.train(model, body, head, examples, settings, seed, self._bf16, self._device, progress, teacher, self.note)
        finally:
            if settings.gradient_checkpointing:
                model.activation_checkpointing_disable()
                model.disable_input_require_grads()
            if wrapped is not None:
                self._adapter = adapters.detach(wrapped)
        self._refresh()
        return losses

    def embed_hidden(self, texts: list[str]) -> NDArray[np.float32]:
        """Mean last hidden states of the frozen M_0 (texts, width), L2-normalised: an encoder that selection does not use."""
        out = []
        for text in texts:
            ids = (self.start() + self.encode_text(text))[: min(512, self.context)] or [self.end]
            with torch.inference_mode():
                states = self._frozen.base_model(input_ids=torch.tensor([ids], device=self._device)).last_hidden_state[0]
            mean = states.float().mean(0)
            out.append((mean / mean.norm().clamp(min=1e-12)).cpu().numpy())
        return np.stack(out) if out else np.zeros((0, 1), np.float32)

    def _teacher(self, which: Which) -> Teacher:
        model = self._copy if which == "current" else self._frozen
        return Teacher(model.base_model, model.get_output_embeddings(), self._device, self._lean(which), self.note)

    def _lean(self, which: Which) -> LeanBody | None:
        """The lean pass of a model, where its layout has one; made again when its weights have changed."""
        if which not in self._packed:
            self._packed[which] = lean_body(self._copy if which == "current" else self._frozen)
        return self._packed[which]


def open_model(name: str) -> tuple[Any, Any]:
    """Tokenizer and fp32 model. Raises UserError when they cannot be had, or when the architecture needs more than a linear head."""
    source = models.resolve(name)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model = {name!r} cannot be loaded ({first}); give a folder, a GGUF file, or a hub id that can be reached."
        ) from None
    model.eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        plain = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
        if not torch.allclose(plain, model(input_ids=ids).logits, atol=1e-3, rtol=1e-3):
            raise UserError(f"model = {name!r} transforms its logits after the output layer, which this program does not support.")
    return tokenizer, model
