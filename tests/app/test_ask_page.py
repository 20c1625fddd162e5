"""The page Ask in every state, on a real run of the fake engine; questions are answered in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import HOSTILE, make_run
from page_kit import shown
from small import finished
from streamlit.testing.v1 import AppTest

from dces_core import ask, launch, models, processes, store, worker
from dces_core.ask import Job
from dces_core.stage import write_json
from dces_core.store import Run
from dces_core.ui.text import escaped

Open = Callable[..., AppTest]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("ask"), "small-1", arms=["plain", "dces", "frozen"], keep="ends", rounds=3)


@pytest.fixture
def run(made: Run, runs: Path) -> Run:
    shutil.copytree(made.path, runs / made.id)
    return Run(runs / made.id)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """What the page starts; no process is made."""
    found: list[Run] = []
    monkeypatch.setattr(launch, "start", lambda job: found.append(job) or job)
    return found


def put(run: Run, *places: tuple[str, int], **values: Any) -> Job:
    given = [{"arm": arm, "round": round_} for arm, round_ in places]
    return ask.create(run, ask.question(run, **{"prompt": "What is 0?", "checkpoints": given, **values}))


def click(app: AppTest, key: str) -> AppTest:
    """Press a button; a form's button has no key of its own in the test's view of the page."""
    next(button for button in app.button if button.key == key or (button.form_id == "ask" and key == "ask-send")).click().run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def test_only_rounds_with_weights_are_offered_and_the_others_are_explained(run: Run, open_page: Open) -> None:
    app = open_page("ask", run=run.id)
    assert app.selectbox(key="pick-left").options == [
        "round 0, where all arms begin", "plain, round 1", "plain, round 3", "dces, round 1", "dces, round 3",
    ]  # fmt: skip
    assert (app.selectbox(key="pick-left").value, app.selectbox(key="pick-right").value) == ("plain/3", "dces/3")
    words = shown(app)
    assert "plain, dces, round 2: weights deleted: keep = ends keeps those of the first and the newest round." in words
    assert "frozen, rounds 1 to 3: never trained" in words
    assert not ask.jobs() and "Answers" not in words


def test_a_question_from_the_button_to_the_answers(run: Run, open_page: Open, started: list[Run]) -> None:
    app = open_page("ask", run=run.id, left="plain/1", right="shared/0")
    app.text_area[0].set_value("What is 1?")
    app.number_input(key=f"{run.id}/samples").set_value(2)
    app.number_input(key=f"{run.id}/seed").set_value(7)
    click(app, "ask-send")
    (job,) = ask.jobs(run)
    assert [one.path for one in started] == [job.path]
    asked = job.question
    assert (asked.prompt, asked.samples, asked.seed) == ("What is 1?", 2, 7)
    assert [(place.arm, place.round) for place in asked.checkpoints] == [("plain", 1), ("shared", 0)]
    assert "The model is loading" in shown(app) and shown(app).count("not answered yet") == 6
    assert next(button for button in app.button if button.form_id == "ask").disabled
    assert worker.run_foreground(job) == "done"
    app.run()
    words = shown(app)
    for row in job.answers:
        assert escaped(row["text"]) in words
    assert "sampled at temperature 0.8, top-p 0.9, seed 7" in words and "not answered" not in words
    assert not app.markdown


def test_hostile_prompts_and_answers_are_verbatim(run: Run, open_page: Open) -> None:
    job = put(run, ("plain", 3), prompt=HOSTILE[4], samples=8)
    rows = [
        {
            "arm": "plain", "round": 3, "mode": "sampled" if draw else "greedy", "draw": draw or 1, "text": text,
            "tokens": 3, "ended": True, "logprob": None, "loop": False,
        }
        for draw, text in enumerate(HOSTILE[:9])
    ]  # fmt: skip
    write_json(job.answers_path, rows)
    job.write_status({**job.status(), "state": "done"})
    app = open_page("ask", run=run.id)
    words = shown(app)
    assert not app.markdown
    assert "<script>" not in words and "<img src=x" not in words and "<style>*" not in words
    assert '<span class="loop">' in words
    app.toggle(key="highlight").set_value(False).run()
    for text in HOSTILE[:9]:
        assert escaped(text) in shown(app)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "failed", "error": "prompt has 9 tokens <b>"}, "prompt has 9 tokens &lt;b&gt;"),
        ({"state": "stopped"}, "Cancelled. What was answered before stays."),
        ({"state": "running", "pid": 2**22 + 1, "pid_started": 0.0}, "gone without a word"),
        ({"state": "queued", "waiting_for": "other-1"}, "Queued behind other-1"),
    ],
)
def test_every_state_of_a_question(run: Run, open_page: Open, status: dict[str, Any], words: str) -> None:
    job = put(run, ("plain", 3), ("dces", 3))
    alive = processes.identity() if status["state"] == "queued" else {}
    job.write_status({**job.status(), **alive, **status})
    app = open_page("ask", run=run.id)
    assert words in shown(app)
    keys = {button.key for button in app.button}
    assert ("ask-cancel" in keys) == (status["state"] == "queued") != ("ask-delete" in keys)


def test_progress_cancel_and_delete(run: Run, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    job = put(run, ("plain", 3))
    at = {"state": "running", **processes.identity(), "arm": "plain", "round": 3, "stage": "sampled", "done": 1, "total": 4}
    job.write_status({**job.status(), **at})
    app = open_page("ask", run=run.id)
    assert [bar.proto.value for bar in app.get("progress")] == [25]
    asked: list[Run] = []
    monkeypatch.setattr(launch, "stop", lambda one, grace_s, wait: asked.append(one))
    click(app, "ask-cancel")
    assert [one.path for one in asked] == [job.path]
    job.write_status({**job.status(), "state": "stopped"})
    app.run()
    click(app, "ask-delete")
    assert ask.jobs() == [] and "Answers" not in shown(app)


def test_earlier_questions_can_be_looked_at(run: Run, open_page: Open) -> None:
    ids = []
    for prompt in ("the first", "the second"):
        job = put(run, ("plain", 3), prompt=prompt)
        assert worker.run_foreground(job) == "done"
        ids.append(job.id)
    app = open_page("ask", run=run.id)
    assert app.selectbox(key="pick-question").value == ids[1] and "the second" in shown(app)
    app.selectbox(key="pick-question").select(ids[0]).run()
    assert "the first" in shown(app) and ids[0] in app.query_params["question"]
    assert "the first" in shown(open_page("ask", run=run.id, question=ids[0]))


def test_a_question_to_another_run_is_said(run: Run, runs: Path, open_page: Open) -> None:
    shutil.copytree(run.path, runs / "other-1")
    put(Run(runs / "other-1"), ("plain", 3))
    app = open_page("ask", run=run.id)
    assert "A question to run other-1 is being answered" in shown(app)
    assert next(button for button in app.button if button.form_id == "ask").disabled


def test_a_busy_device_is_said_before_anybody_asks(run: Run, open_page: Open) -> None:
    write_json(launch.device_lock("fake").with_suffix(".json"), {"run": "other-1", **processes.identity()})
    assert "The device is used by other-1: a question waits" in shown(open_page("ask", run=run.id))


def test_what_the_form_refuses_becomes_a_sentence(run: Run, open_page: Open, started: list[Run]) -> None:
    app = open_page("ask", run=run.id)
    app.text_area[0].set_value("   ")
    click(app, "ask-send")
    assert "prompt is blank" in shown(app) and not started and not ask.jobs()


@pytest.mark.parametrize("value", ["nobody/3", "../../etc/passwd", "plain/2", "<script>", ""])
def test_addresses_are_clamped(run: Run, open_page: Open, value: str) -> None:
    app = open_page("ask", run=run.id, left=value, right=value, question=value)
    assert (app.selectbox(key="pick-left").value, app.selectbox(key="pick-right").value) == ("plain/3", "dces/3")
    assert "<script>" not in shown(app)


def test_one_checkpoint_alone(run: Run, open_page: Open, started: list[Run]) -> None:
    app = open_page("ask", run=run.id, left="dces/3", right="none")
    click(app, "ask-send")
    (job,) = ask.jobs(run)
    assert len(job.question.checkpoints) == 1


def test_a_recorded_run_offers_its_base_model(run: Run, open_page: Open) -> None:
    shutil.copytree(run.path, store.recorded_root() / "shipped")
    app = open_page("ask", run="shipped")
    assert app.selectbox(key="pick-left").options == ["round 0, where all arms begin"]
    assert "a run that ships with the project has no weights" in shown(app)


def test_a_model_that_is_not_here_is_offered(runs: Path, open_page: Open) -> None:
    make_run(runs, engine="hf", model=models.DEFAULT)
    app = open_page("ask", run="synthetic-1")
    assert "is not on this machine yet" in shown(app) and not app.text_area
    make_run(runs, "other", engine="hf", model="./absent")
    assert "model = &#x27;./absent&#x27;" in shown(open_page("ask", run="other"))


def test_nothing_to_ask_yet(runs: Path, open_page: Open) -> None:
    make_run(runs, train={"round0": "finetune"}, upto={"plain": -1, "dces": -1, "dces-targets": -1}, state="queued")
    words = shown(open_page("ask", run="synthetic-1"))
    assert "No checkpoint of this run can be asked" in words and "not trained yet" in words
