from __future__ import annotations

import pytest

from dces_core.engines.memory import Halving, ran_out


def worker(room: int, seen: list[list[int]], message: str = "CUDA out of memory.") -> object:
    def work(batch: list[int]) -> None:
        if len(batch) > room:
            raise RuntimeError(message)
        seen.append(batch)

    return work


def test_a_batch_that_fits_is_done_whole() -> None:
    notes: list[str] = []
    seen: list[list[int]] = []
    Halving("scoring", notes.append).do([1, 2, 3], worker(3, seen))  # type: ignore[arg-type]
    assert seen == [[1, 2, 3]] and not notes


def test_once_memory_has_run_out_batches_are_halved_and_it_is_said_once() -> None:
    notes: list[str] = []
    seen: list[list[int]] = []
    undone: list[bool] = []
    memory = Halving("scoring", notes.append)
    for batch in ([0, 1, 2, 3, 4], [5, 6, 7], [8]):
        memory.do(batch, worker(3, seen), lambda: undone.append(True))  # type: ignore[arg-type]
    assert seen == [[0, 1, 2], [3, 4], [5, 6], [7], [8]]
    assert notes == ["out of memory while scoring 5 sequences at once; going on with half as many"] and undone == [True]


@pytest.mark.parametrize("room", [0, 1])
def test_the_second_time_is_final(room: int) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        Halving("scoring", lambda text: None).do([1, 2, 3], worker(room, []))  # type: ignore[arg-type]


def test_other_errors_are_not_tried_again() -> None:
    notes: list[str] = []
    with pytest.raises(RuntimeError, match="shape"):
        Halving("scoring", notes.append).do([1, 2], worker(1, [], "shape"))  # type: ignore[arg-type]
    assert not notes
    assert ran_out(MemoryError()) and not ran_out(RuntimeError("shape"))
