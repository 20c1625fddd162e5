"""Questions to checkpoints: who can be asked, what is answered, and that nothing but a job folder is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from small import attempt, contents, finished, small_run

from dces_core import ask, cli, launch, models, processes, store, worker
from dces_core.ask import Checkpoint, Job
from dces_core.errors import UserError
from dces_core.stage import write_json
from dces_core.store import SHARED, WEIGHTS, Run

ARMS = ["plain", "dces"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two rounds, all weights."""
    return finished(tmp_path_factory.mktemp("kept"), arms=ARMS, keep="all")


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three rounds, the newest weights, and an arm that never trains."""
    return finished(tmp_path_factory.mktemp("newest"), arms=["plain", "frozen"], rounds=3)


def put(run: Run, *places: tuple[str, int], **values: Any) -> Job:
    """A question to these checkpoints."""
    given = {"prompt": "What is 0?", **values}
    return ask.create(run, ask.question(run, checkpoints=[{"arm": arm, "round": round_} for arm, round_ in places], **given))


def answered(run: Run, *places: tuple[str, int], **values: Any) -> list[dict[str, Any]]:
    job = put(run, *places, **values)
    assert attempt(job) == "done", job.status().get("error")
    return job.answers


# who can be asked -------------------------------------------------------------------------------------------------------


def test_all_weights_kept_means_all_rounds(kept: Run) -> None:
    names = [(place.arm, place.round) for place in ask.checkpoints(kept)]
    assert names == [(SHARED, 0), ("plain", 1), ("plain", 2), ("dces", 1), ("dces", 2)]
    assert ask.missing(kept) == []


def test_why_the_others_cannot_be_asked(newest: Run, tmp_path: Path) -> None:
    assert [(place.arm, place.round) for place in ask.checkpoints(newest)] == [(SHARED, 0), ("plain", 3)]
    assert ask.missing(newest) == [
        ("plain", [1, 2], "weights deleted: keep = newest keeps those of the newest round"),
        ("frozen", [1, 2, 3], "never trained: the model of round 0 in every round"),
    ]
    waiting = small_run(tmp_path, arms=["plain"])
    assert ask.missing(waiting) == [("plain", [1, 2], "not trained yet")]
    shutil.copytree(newest.path, tmp_path / "damaged")
    damaged = Run(tmp_path / "damaged")
    damaged.stage(3, "plain", "train").file(WEIGHTS).write_bytes(b"")
    assert ask.absent(damaged, "plain", 3) == "weights missing or damaged on the disk"


def test_a_fine_tuned_round_0_needs_its_weights(tmp_path: Path) -> None:
    waiting = small_run(tmp_path, arms=["plain"], train={"round0": "finetune"})
    assert ask.checkpoints(waiting) == [] and ask.missing(waiting)[0] == (SHARED, [0], "not trained yet")
    run = finished(tmp_path, "done", arms=["plain"], rounds=1, train={"round0": "finetune"})
    base = finished(tmp_path, "base", arms=["plain"], rounds=1)
    one, other = (answered(which, (SHARED, 0), max_new_tokens=40, samples=0) for which in (run, base))
    assert one != other, "fine-tuning made another model"


def test_a_recorded_run_has_its_base_model_only(newest: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "recorded_root", lambda: newest.path.parent)
    assert [(place.arm, place.round) for place in ask.checkpoints(newest)] == [(SHARED, 0)]
    assert "ships with the project" in ask.missing(newest)[0][2]


# answers ----------------------------------------------------------------------------------------------------------------


def test_a_watched_prompt_gets_its_watched_greedy_answer(kept: Run) -> None:
    probes = kept.probes().filter(mode="greedy", prompt_id="p0")
    for place in ask.checkpoints(kept):
        (greedy, sampled) = answered(kept, (place.arm, place.round))
        arm = "plain" if place.arm == SHARED else place.arm
        assert greedy["text"] == probes.filter(arm=arm, round=place.round)["text"].item()
        assert (greedy["mode"], sampled["mode"]) == ("greedy", "sampled")


def test_two_checkpoints_get_the_same_noise(kept: Run) -> None:
    rows = answered(kept, ("plain", 2), ("plain", 2), samples=3, max_new_tokens=20, temperature=1.0)
    assert [(row["mode"], row["draw"]) for row in rows[:4]] == [("greedy", 1), ("sampled", 1), ("sampled", 2), ("sampled", 3)]
    assert rows[:4] == rows[4:]
    assert len({row["text"] for row in rows[:4]}) > 1
    assert all(row["tokens"] <= 20 and (row["ended"] or row["tokens"] == 20) for row in rows)
    again = answered(kept, ("plain", 2), samples=3, max_new_tokens=20, temperature=1.0)
    other = answered(kept, ("plain", 2), samples=3, max_new_tokens=20, temperature=1.0, seed=1)
    assert again == rows[:4] and again != other and again[0] == other[0], "the seed moves the sampled answers, not the greedy one"


def test_settings_come_from_the_run_unless_given(kept: Run) -> None:
    asked = ask.question(kept, prompt="x", checkpoints=[{"arm": "plain", "round": 1}], top_p=0.5)
    assert (asked.temperature, asked.top_p, asked.max_new_tokens) == (kept.config.generate.temperature, 0.5, 6)


def test_nothing_but_the_job_folder_is_written_and_no_run_appears(kept: Run) -> None:
    before, files = contents(kept), {path: path.stat().st_mtime_ns for path in kept.path.rglob("*")}
    answered(kept, ("dces", 2), ("dces", 1))
    assert contents(kept) == before and {path: path.stat().st_mtime_ns for path in kept.path.rglob("*")} == files
    assert store.discover(recorded=False) == []
    (job,) = ask.jobs(kept)
    assert {path.name for path in job.path.iterdir()} - {"worker.lock"} == {"ask.json", "answers.json", "status.json", "events.jsonl"}
    assert job.run_id == kept.id and job.question.checkpoints == (Checkpoint(arm="dces", round=2), Checkpoint(arm="dces", round=1))
    ask.forget(job)
    assert ask.jobs() == []


def test_weights_that_a_run_deletes_meanwhile_still_answer(kept: Run, tmp_path: Path) -> None:
    shutil.copytree(kept.path, tmp_path / "alive")
    run = Run(tmp_path / "alive")
    job = put(run, ("dces", 1), samples=0)
    run.prune(run.stage(1, "dces", "train"))
    assert attempt(job) == "done"
    assert job.answers == answered(kept, ("dces", 1), samples=0)


def test_without_links_the_sentence_says_what_happened(kept: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    shutil.copytree(kept.path, tmp_path / "alive")
    run = Run(tmp_path / "alive")
    monkeypatch.setattr(os, "link", no_links)
    job = put(run, ("plain", 2), ("dces", 1))
    run.prune(run.stage(1, "dces", "train"))
    assert attempt(job) == "failed"
    assert "weights of round 1 of dces were deleted before" in str(job.status()["error"])
    assert {row["arm"] for row in job.answers} == {"plain"}, "what was answered before stays"


def test_a_prompt_that_is_too_long_fails_in_a_sentence(kept: Run) -> None:
    job = put(kept, ("plain", 2), prompt="word " * 800, max_new_tokens=1000)
    assert attempt(job) == "failed"
    assert "801 tokens" in job.status()["error"] and "context of 1024" in job.status()["error"]
    assert not list(job.path.glob("weights-*"))


def test_hostile_prompts_travel_unchanged(kept: Run) -> None:
    prompt = "</div><script>alert(1)</script>\x00\u202e ![x](http://127.0.0.1:9/b.png) \"quoted\" 'so'"
    job = put(kept, (SHARED, 0), prompt=prompt)
    assert Job(job.path).question.prompt == prompt and attempt(job) == "done"


# jobs -------------------------------------------------------------------------------------------------------------------


def test_one_question_at_a_time(kept: Run) -> None:
    first = put(kept, ("plain", 2))
    with pytest.raises(UserError, match=r"question-.* is queued and one question is answered at a time"):
        put(kept, ("dces", 2))
    with pytest.raises(UserError, match="cancel it before"):
        ask.forget(first)
    assert attempt(first) == "done"
    assert attempt(put(kept, ("dces", 2))) == "done"


def test_it_waits_behind_a_run_and_can_be_cancelled(kept: Run) -> None:
    job = put(kept, ("plain", 2))
    lock = job.path.parent / "fake.lock"
    with FileLock(lock):
        write_json(lock.with_suffix(".json"), {"run": "other-1", **processes.identity()})
        seen: list[Any] = []
        real = worker.Events.check_stop

        def check(events: worker.Events) -> None:
            seen.append(events.status.get("waiting_for"))
            if "other-1" in seen:
                job.stop_path.touch()
            real(events)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker.Events, "check_stop", check)
            assert attempt(job) == "stopped"
    assert "other-1" in seen and launch.state(job) == "stopped" and job.answers == []


def test_a_killed_question_is_lost_and_swept_with_its_links(kept: Run) -> None:
    job = put(kept, ("plain", 2))
    assert list(job.path.glob("weights-*"))
    job.write_status({**job.status(), "state": "running", "pid": 2**22 + 1, "pid_started": 0.0})
    assert launch.state(job) == "lost"
    (ask.jobs_root() / "question-torn").mkdir()
    answered(kept, ("plain", 2))
    assert not list(job.path.glob("weights-*")) and not (ask.jobs_root() / "question-torn").exists()


def test_only_the_newest_questions_stay(kept: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "KEPT", 3)
    for number in range(5):
        answered(kept, (SHARED, 0), prompt=f"number {number}", samples=0)
    assert [job.question.prompt for job in ask.jobs()] == ["number 4", "number 3", "number 2"]


def test_the_worker_knows_a_question_by_its_folder(kept: Run) -> None:
    job = put(kept, ("plain", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "device_lock", lambda device: job.path.parent / f"{device}.lock")
        assert worker.main([str(job.path)]) == 0
    assert len(job.answers) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " \n "}, "prompt is blank"),
        ({"prompt": "x" * 4001}, "prompt = .* at most 4000"),
        ({"samples": 9}, "samples = 9 is not allowed"),
        ({"temperature": 0}, "temperature = 0 is not allowed"),
        ({"seed": -1}, "seed = -1 is not allowed"),
        ({"checkpoints": []}, "checkpoints"),
        ({"checkpoints": [{"arm": "dces", "round": 9}]}, "round = 9 of arm 'dces' cannot be asked: the run has 2 rounds"),
        ({"checkpoints": [{"arm": "random", "round": 1}]}, "arm = 'random' is not in run"),
        ({"checkpoints": [{"arm": SHARED, "round": 1}]}, "arm = 'shared' is not in run"),
    ],
)
def test_bad_questions_make_no_folder(kept: Run, changes: dict[str, Any], words: str) -> None:
    given = {"prompt": "x", "checkpoints": [{"arm": "plain", "round": 1}], **changes}
    with pytest.raises(UserError, match=words):
        ask.create(kept, ask.question(kept, **given))
    assert ask.jobs() == []


def test_a_model_that_is_not_here_is_said_at_once(kept: Run, tmp_path: Path) -> None:
    config = kept.config.model_copy(update={"engine": "hf", "model": models.DEFAULT})
    run = store.create(config, {}, tmp_path / "hf")
    with pytest.raises(UserError, match="dces models pull"):
        put(run, (SHARED, 0))


# command line -----------------------------------------------------------------------------------------------------------


def test_the_command(kept: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "device_lock", lambda device: kept.path.parent / f"{device}.lock")
    given = ["ask", str(kept.path), "--arm", "plain", "--arm", "dces", "--prompt", "What is 0?", "--samples", "2"]
    assert cli.main([*given, "--format", "json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [(row["arm"], row["round"], row["mode"]) for row in rows] == [
        (arm, 2, mode) for arm in ARMS for mode in ("greedy", "sampled", "sampled")
    ]
    assert cli.main([*given[:2], "--prompt", "What is 0?", "--round", "0"]) == 0
    assert "greedy" in capfd.readouterr().out
    for more, words in (
        (["--prompt", " "], "prompt is blank"),
        (["--prompt", "x", "--arm", "nobody"], "arm = 'nobody' is not in run"),
        (["--prompt", "x", "--round", "7"], "the run has 2 rounds"),
        (["--prompt", "x", "--arm", "plain", "--arm", "dces", "--arm", "random"], "checkpoints"),
    ):
        assert cli.main([*given[:2], *more]) == 2
        captured = capfd.readouterr()
        assert captured.out == "" and words in captured.err and captured.err.count("\n") == 1
    assert cli.main([*given[:2], "--prompt", "word " * 800, "--max-new-tokens", "1000"]) == 1
    assert "context of 1024" in capfd.readouterr().err
