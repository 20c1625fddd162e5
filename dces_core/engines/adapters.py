"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: W + (alpha / rank) B A on every linear layer of the blocks, W frozen.

What a round keeps is A and B alone; for sampling and scoring they are merged into the weights in memory.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from dces_core.config import Train
from dces_core.errors import UserError

State = dict[str, torch.Tensor]
#: In the names of an adapter's tensors, and of no model's.
MARK = ".lora_"


def read(path: Path, settings: Train) -> State:
    """The tensors of a kept checkpoint. Raises UserError where a run with adapters has whole weights there, or the other way round."""
    state = load_file(path)
    ranks = {tensor.shape[0] for name, tensor in state.items() if f"{MARK}A" in name}
    if ranks == ({settings.lora_rank} if settings.lora_rank else set()):
        return state
    kept = f"an adapter of rank {max(ranks)}" if ranks else "whole weights"
    raise UserError(f"train.lora_rank = {settings.lora_rank}, but {path.parent} keeps {kept}; go on with the settings it was trained with.")


def attach(model: Any, settings: Train, seed: int, state: State | None) -> Any:
    """Put an adapter into `model` (in place), the only part that trains: `state`, or a new one drawn from `seed` that changes nothing yet.

    Raises UserError where peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ImportError:
        raise UserError(f"train.lora_rank = {settings.lora_rank} needs peft: pip install -e .[lora]; 0 trains every weight.") from None
    torch.manual_seed(seed)
    transposed = any(isinstance(part, Conv1D) for part in model.modules())
    wanted = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", fan_in_fan_out=transposed, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft still asks by that name
        wrapped = get_peft_model(model.requires_grad_(False), wanted)
    if state is not None:
        missed = set_peft_model_state_dict(wrapped, state).unexpected_keys
        assert not missed, f"the adapter has weights that the model lacks: {missed[:3]}"
    return wrapped


def detach(wrapped: Any) -> State:
    """Merge the adapter into the model that it was put into, in place, and return its tensors."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    state = {name: tensor.detach().cpu().clone() for name, tensor in found.items()}
    wrapped.merge_and_unload().requires_grad_(False)
    return state


def merge(model: Any, settings: Train, state: State) -> None:
    """Add a kept adapter to the base weights that `model` has."""
    detach(attach(model, settings, 0, state))
