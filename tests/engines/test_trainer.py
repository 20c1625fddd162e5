"""Training against a plain loop with full logits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

from dces_core.config import Train
from dces_core.engines import trainer
from dces_core.engines.base import Example, Soft
from dces_core.engines.teacher import Teacher
from dces_core.engines.trainer import plan_batches, response_loss, train
from dces_core.errors import RunFailed

CPU = torch.device("cpu")
END = 2


def examples_of(count: int = 22, shared: int = 0) -> list[Example]:
    rng = np.random.default_rng(1)
    prefix = list(range(5, 5 + shared))
    rows = [
        (prefix + rng.integers(3, 300, rng.integers(1, 12)).tolist(), rng.integers(3, 300, rng.integers(1, 15)).tolist())
        for _ in range(count)
    ]
    return [Example(prompt, response + [END] * (i % 2)) for i, (prompt, response) in enumerate(rows)]


def still(family: str) -> Any:
    """A model without dropout."""
    model = tiny.model(family)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return model


def fast(model: Any, examples: list[Example], settings: Train, seed: int = 3, bf16: bool = False) -> list[float]:
    return train(model, model.base_model, model.get_output_embeddings(), examples, settings, seed, bf16, CPU)


def plain(model: Any, examples: list[Example], settings: Train, seed: int = 3) -> list[float]:
    """One sequence at a time through the whole model; mean over the response tokens of a batch."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    plan, losses = plan_batches(examples, settings, seed), []
    model.train()
    for step, batch in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * ((1 - step / len(plan)) if settings.schedule == "linear" else 1)
        chosen = [examples[i] for i in batch]
        total = sum(len(example.response) for example in chosen)
        optimiser.zero_grad()
        value = 0.0
        for example in chosen:
            logits = model(input_ids=torch.tensor([example.prompt + example.response])).logits[0, len(example.prompt) - 1 : -1]
            loss = cross_entropy(logits, torch.tensor(example.labels or example.response), reduction="sum") / total
            loss.backward()
            value += loss.detach().item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimiser.step()
        losses.append(value)
    return losses


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_is_that_of_a_plain_loop(family: str, shared: int) -> None:
    examples, settings = examples_of(shared=shared), Train(epochs=2, batch_size=4, lr=1e-3, weight_decay=0.01)
    found, wanted = fast(still(family), examples, settings), plain(still(family), examples, settings)
    assert len(found) == 12
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found[-1] < found[0]


def test_a_linear_schedule_ends_where_it_should() -> None:
    examples = examples_of()
    settings = Train(batch_size=2, lr=3e-3, schedule="linear")
    linear = fast(still("llama"), examples, settings)
    assert linear == pytest.approx(plain(still("llama"), examples, settings), abs=1e-4)
    assert linear != pytest.approx(fast(still("llama"), examples, settings.model_copy(update={"schedule": "constant"})), abs=1e-3)


def chances(model: Any, example: Example) -> torch.Tensor:
    """Cross-entropy of each response token."""
    logits = model(input_ids=torch.tensor([example.prompt + example.response])).logits[0, len(example.prompt) - 1 : -1]
    return cross_entropy(logits, torch.tensor(example.response), reduction="none")


def test_truncated_cross_entropy_leaves_confident_tokens_out_of_the_loss_and_the_gradient() -> None:
    examples = examples_of(6)
    losses = torch.cat([chances(still("llama").train(), example) for example in examples]).detach()
    gamma = float((-losses.median()).exp()) * (1 + 1e-5)
    settings = Train(batch_size=6, lr=1e-3, loss="truncated", tce_gamma=gamma)
    kept = losses >= -np.log(gamma)
    assert 0 < kept.sum() < len(kept)
    model, peer = still("llama"), still("llama").train()
    assert fast(model, examples, settings) == pytest.approx([float((losses * kept).mean())], abs=1e-5)
    optimiser = torch.optim.AdamW(peer.parameters(), lr=1e-3, weight_decay=0)
    own = torch.cat([chances(peer, example) for example in examples])
    own[kept].sum().div(len(own)).backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), settings.max_grad_norm)
    optimiser.step()
    for one, other in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)
    assert fast(still("llama"), examples, Train(batch_size=6, lr=1e-3, tce_gamma=gamma))[0] > float((losses * kept).mean())


def test_truncation_at_one_is_none_and_below_every_token_teaches_nothing() -> None:
    examples = examples_of()
    whole, one = (
        fast(still("opt"), examples, Train(batch_size=4, lr=1e-3, **more)) for more in ({}, {"loss": "truncated", "tce_gamma": 1.0})
    )
    assert one == pytest.approx(whole, abs=1e-5)
    model = still("opt")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert set(fast(model, examples, Train(batch_size=4, lr=1e-3, loss="truncated", tce_gamma=1e-30))) == {0.0}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_labels_are_what_is_learnt() -> None:
    examples = examples_of()
    edited = [Example(e.prompt, e.response, [(token + 7) % 300 for token in e.response]) for e in examples]
    settings = Train(batch_size=4, lr=1e-3)
    found = fast(still("qwen3"), edited, settings)
    assert found == pytest.approx(plain(still("qwen3"), edited, settings), abs=1e-4)
    assert found[0] != pytest.approx(fast(still("qwen3"), examples, settings)[0], abs=1e-3)


def test_a_response_that_was_cut_is_not_taught_to_end() -> None:
    cut = [Example([4 + i], [10 + i, 60 + i, 90 + i]) for i in range(8)]
    ids, chance = torch.tensor([e.prompt + e.response for e in cut]), []
    for end in ([], [END]):
        model = still("llama")
        fast(model, [Example(e.prompt, e.response + end) for e in cut], Train(epochs=8, batch_size=4, lr=3e-3))
        with torch.inference_mode():
            chance.append(model(input_ids=ids).logits[:, -1].softmax(-1)[:, END])
    assert (chance[0] < 0.05).all()
    assert (chance[1] > 0.3).all()


@pytest.mark.parametrize(("count", "size", "epochs"), [(22, 4, 3), (1, 8, 2), (300, 8, 1), (16, 16, 2)])
def test_batches_cover_every_example_once_an_epoch(count: int, size: int, epochs: int) -> None:
    examples, settings = examples_of(count), Train(batch_size=size, epochs=epochs)
    plan = plan_batches(examples, settings, 5)
    assert Counter(i for batch in plan for i in batch) == dict.fromkeys(range(count), epochs)
    per_epoch = len(plan) // epochs
    for epoch in range(epochs):
        assert sorted(i for batch in plan[epoch * per_epoch : (epoch + 1) * per_epoch] for i in batch) == list(range(count))
    assert max(map(len, plan)) <= size
    assert plan == plan_batches(examples, settings, 5)
    assert count < 3 or plan != plan_batches(examples, settings, 6)


def test_a_loss_that_is_not_a_number_fails_the_run() -> None:
    model = still("gpt2")
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = torch.nan
    with pytest.raises(RunFailed, match=r"training loss is nan at step 1 of 6; lower train\.lr"):
        fast(model, examples_of(), Train(batch_size=4))


def test_a_gradient_that_is_not_finite_fails_the_run() -> None:
    model = still("llama")
    model.base_model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(RunFailed, match=r"gradient is (nan|inf) at step 1"):
        fast(model, examples_of(), Train(batch_size=4))


def test_a_step_without_room_for_its_batch_keeps_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves = still("llama"), still("llama")
    wanted = fast(whole, examples_of(), Train(batch_size=4, lr=1e-3))
    real = trainer.response_loss

    def room_for_two(body: Any, head: Any, examples: list[Example], *rest: Any) -> Any:
        if len(examples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(body, head, examples, *rest)

    monkeypatch.setattr(trainer, "response_loss", room_for_two)
    assert fast(halves, examples_of(), Train(batch_size=4, lr=1e-3)) == pytest.approx(wanted, rel=1e-4)
    for left, right in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.allclose(left, right, atol=2e-4)


def test_nothing_to_train_on_changes_nothing() -> None:
    model = still("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fast(model, [Example([4], [])], Train()) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_same_seed_repeats_a_training_with_dropout_and_precisions_may_alternate() -> None:
    runs = [fast(tiny.model("gpt2"), examples_of(), Train(batch_size=4, lr=1e-3), bf16=bf16) for bf16 in (False, True, False, True)]
    assert runs[0] == runs[2] and runs[1] == runs[3]
    assert runs[0] != runs[1]
    assert runs[0] == pytest.approx(runs[1], abs=0.1)


def test_evaluation_mode_after_training() -> None:
    model = tiny.model("opt")
    fast(model, examples_of(4), Train())
    assert not model.training


# soft positions -----------------------------------------------------------------------------------------------------------


def teacher_of(model: Any) -> Teacher:
    return Teacher(model.base_model, model.get_output_embeddings(), CPU)


def soften(example: Example, temperature: float = 1.0, top_k: int = 0, first: int = 0) -> Example:
    return Example(example.prompt, example.response, None, Soft(list(range(first, len(example.response))), temperature, top_k))


def loss_of(model: Any, examples: list[Example], teacher: Any = None, gamma: float | None = None) -> torch.Tensor:
    return response_loss(model.base_model, model.get_output_embeddings(), examples, CPU, gamma, teacher and teacher_of(teacher))[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_has_nothing_to_learn_from_its_own_distribution(family: str) -> None:
    model, examples = still(family), examples_of(6)
    hard, soft = (torch.autograd.grad(loss_of(model, rows, model), list(model.parameters()), allow_unused=True)
                  for rows in (examples, [soften(example) for example in examples]))  # fmt: skip
    size = lambda grads: sum(float((g**2).sum()) for g in grads if g is not None) ** 0.5  # noqa: E731
    assert size(soft) < 1e-4 * size(hard)


def test_the_loss_of_soft_positions_is_the_cross_entropy_with_the_teacher() -> None:
    student, frozen, (example,) = still("llama"), tiny.model("llama", seed=1), [examples_of(1)[0]]
    example = Example(example.prompt, [7, 8, 9, 10])

    def logits(model: Any) -> torch.Tensor:
        return model(input_ids=torch.tensor([example.prompt + example.response])).logits[0, len(example.prompt) - 1 : -1].detach()

    own, other = logits(student).log_softmax(-1), logits(frozen)
    for top_k in (0, 3):
        kept = other / 1.3 if not top_k else (other / 1.3).masked_fill(other < other.topk(top_k).values[:, -1:], -torch.inf)
        wanted = -(kept.softmax(-1) * own).sum(-1)
        wanted[0] = -own[0, 7]  # the first token stays as it is
        assert loss_of(student, [soften(example, 1.3, top_k, first=1)], frozen).item() == pytest.approx(wanted.mean().item(), abs=1e-5)


def test_truncated_cross_entropy_spares_no_soft_position() -> None:
    model, examples = still("gpt2"), [soften(example) for example in examples_of(4)]
    assert loss_of(model, examples, model, gamma=1e-9).item() == pytest.approx(loss_of(model, examples, model).item())
    assert loss_of(model, examples_of(4), gamma=1e-9).item() == 0
