"""LoRA: what trains, what is kept, what is merged; and the two ways to need less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from dces_core.config import RunConfig, parse
from dces_core.engines.base import Example
from dces_core.engines.hf import HFModel
from dces_core.errors import UserError

EXAMPLES = [Example([5, 6, 7 + i], [20 + i, 21, 22 + i, 23]) for i in range(6)]


def config(family: str, **train: Any) -> RunConfig:
    settings = {"lr": 1e-2, "precision": "fp32", "batch_size": 3, "lora_rank": 4, **train}
    return parse({"model": str(tiny.folder(family)), "rounds": 2, "device": "cpu", "train": settings})


def weights(engine: HFModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine._master.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_adapter_trains_is_kept_alone_and_comes_back_to_the_last_bit(family: str, tmp_path: Path) -> None:
    settings = config(family)
    engine = HFModel(settings)
    base = weights(engine)
    losses = engine.train(EXAMPLES, settings.train, 1)
    losses += engine.train(EXAMPLES, settings.train, 2)
    assert losses[-1] < losses[0]
    trained = weights(engine)
    changed = differing(base, trained)
    blocks = {name for name, tensor in base.items() if tensor.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name}
    assert changed == blocks - {"lm_head.weight"}
    engine.save(tmp_path / "adapter.safetensors")
    kept = load_file(tmp_path / "adapter.safetensors")
    assert all(".lora_" in name and 4 in tensor.shape for name, tensor in kept.items()) and len(kept) == 2 * len(changed)
    again = HFModel(settings)
    again.load(tmp_path / "adapter.safetensors")
    assert not differing(trained, weights(again))
    again.freeze(tmp_path / "adapter.safetensors")
    assert not differing(trained, {name: tensor for name, tensor in again._frozen.state_dict().items()})
    again.load(None)
    assert not differing(base, weights(again))


def test_training_goes_on_with_the_same_adapter(tmp_path: Path) -> None:
    """An interrupted run, which loads the adapter of the round before, equals one that did not stop."""
    settings = config("llama")
    engine = HFModel(settings)
    engine.train(EXAMPLES, settings.train, 1)
    engine.save(tmp_path / "one.safetensors")
    engine.train(EXAMPLES, settings.train, 2)
    resumed = HFModel(settings)
    resumed.load(tmp_path / "one.safetensors")
    resumed.train(EXAMPLES, settings.train, 2)
    assert not differing(weights(engine), weights(resumed))
    fresh = HFModel(settings)
    fresh.train(EXAMPLES, settings.train, 2)
    assert differing(weights(fresh), weights(resumed))


def test_whole_weights_are_no_adapter_and_the_other_way_round(tmp_path: Path) -> None:
    whole, part = config("llama", lora_rank=0), config("llama")
    for settings, other in ((whole, part), (part, whole), (part, config("llama", lora_rank=2))):
        engine = HFModel(settings)
        engine.train(EXAMPLES, settings.train, 1)
        engine.save(tmp_path / "weights.safetensors")
        with pytest.raises(UserError, match=r"train\.lora_rank = "):
            HFModel(other).load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("train", [{"gradient_checkpointing": True}, {"micro_batch_size": 1}, {"micro_batch_size": 2}])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_less_memory_gives_the_same_losses(family: str, rank: int, train: dict[str, Any]) -> None:
    """The same sums in another order: losses agree within 1e-5, relative."""
    settings = config(family, lora_rank=rank, lr=1e-3)
    changed = config(family, lora_rank=rank, lr=1e-3, **train)
    one, other = (HFModel(s).train(EXAMPLES, s.train, 1) for s in (settings, changed))
    assert other == pytest.approx(one, rel=1e-5)
    assert len(one) == 2  # the optimiser's steps are those of batch_size


@pytest.mark.parametrize("rank", [0, 4])
def test_checkpointing_computes_every_block_twice_in_training_and_once_elsewhere(rank: int) -> None:
    settings = config("qwen3", lora_rank=rank, gradient_checkpointing=True)
    engine = HFModel(settings)
    seen: list[int] = []
    for layer in engine._master.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: seen.append(1))
    engine.train(EXAMPLES, settings.train, 1)
    assert len(seen) == 2 * 2 * 2  # steps, layers, forward and again in the backward pass
    assert not engine._master.is_activation_checkpointing
    assert not engine._master.base_model(input_ids=torch.tensor([[5, 6]])).last_hidden_state.requires_grad or not rank


def test_eight_bit_states_are_refused_where_there_is_no_card() -> None:
    with pytest.raises(UserError, match=r"train\.optimizer = 'adamw-8bit' needs device = 'cuda'"):
        HFModel(config("llama", optimizer="adamw-8bit"))
