"""Rules act on rounds as they come, once; a run is stopped and rolled back; no failure ends the watching, no secret is logged."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kit import wait_for
from small import finished, small_config

from dces_core import actions, branch, cli, diagnosing, launch, rules, store, watched, watching
from dces_core.config import SHIPPED
from dces_core.diagnose import Options
from dces_core.errors import UserError
from dces_core.rules import Rule
from dces_core.store import WEIGHTS, Run

ALWAYS, MOVED = "entropy_unigram >= 0", "kl_from_start > 0"  # in every round; in every round but round 0
TOKEN = "s3cret-token-of-a-hook"
UNIT = SHIPPED / "recorded" / "studies" / "collapse" / "units" / "seed-0" / "plain"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DCES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two rounds with the newest weights only."""
    return finished(tmp_path_factory.mktemp("two"), arms=["plain"])


@pytest.fixture
def run(two: Run, home: Path) -> Run:
    """A copy among the runs."""
    return Run(Path(shutil.copytree(two.path, home / "runs" / "run")))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork gets no worker, and counts as ended."""
    monkeypatch.setattr(launch, "start", lambda run: run)
    monkeypatch.setattr(launch, "state", lambda run: "done")


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """A server here: its address, what it was sent, and the codes that it answers with (the last one from then on)."""
    got: list[dict[str, Any]] = []
    codes = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{TOKEN}?key={TOKEN}", got, codes
        server.shutdown()
        thread.join()


def made(*rows: dict[str, Any]) -> tuple[Rule, ...]:
    return rules.parse({"rule": [{"name": f"r{i}", "when": ALWAYS, **row} for i, row in enumerate(rows)]})


def follow(what: Path | str, given: tuple[Rule, ...], once: bool = True) -> tuple[list[str], list[str]]:
    """What was said and what was warned of."""
    said: list[str] = []
    warned: list[str] = []
    source = watched.find(str(what), Path("no spool"), Options(), given, warned.append)
    watching.watch(given, source, said.append, warned.append, once, 0.05)
    return said, warned


def log_of(run: Run) -> list[tuple[str, int, str, str]]:
    return [(one["rule"], one["round"], one["action"], one["state"]) for one in actions.of_run(run).entries()]


# notifications ----------------------------------------------------------------------------------------------------------


def test_a_command_is_told_once_a_round_also_by_later_watchers(run: Run, home: Path) -> None:
    out = home / "out"
    given = made({"command": ["sh", "-c", 'cat >> "$0"; echo " $DCES_WATCH_RULE $DCES_WATCH_ROUND" >> "$0"', str(out)]})
    said, warned = follow(run.path, given)
    lines = out.read_text(encoding="utf-8").splitlines()
    assert [line.rsplit(" ", 2)[1:] for line in lines] == [["r0", "0"], ["r0", "1"], ["r0", "2"]] and not warned
    facts = json.loads(lines[1].rsplit(" ", 2)[0])
    assert facts["round"] == 1 and facts["source"] == "run" and facts["when"] == ALWAYS and "entropy_unigram of plain is" in facts["text"]
    assert len(said) == 6 and said[1] == "run: rule r0: command: the program ended well"
    assert follow(run.path, given) == ([], []) and len(out.read_text(encoding="utf-8").splitlines()) == 3


def test_what_a_killed_watcher_began_is_not_repeated_and_what_it_planned_is_done(run: Run, home: Path) -> None:
    given = made({"command": ["sh", "-c", 'echo "$DCES_WATCH_ROUND" >> "$0"', str(home / "out")]})
    log = actions.of_run(run)
    for round_ in (0, 1):
        log.add("r0", round_, "fired", "fired", "why", planned=["command"])
    log.add("r0", 0, "command", "begun", "")
    with log.path.open("a") as file:
        file.write('{"torn": ')
    follow(run.path, given)
    assert (home / "out").read_text() == "1\n2\n"
    assert [state for rule, round_, action, state in log_of(run) if round_ == 0] == ["fired", "begun"]
    assert len(log_of(run)) == 3 + 2 + 3


def test_a_webhook_gets_json_and_its_address_is_nowhere(
    run: Run, hook: tuple[str, list[dict[str, Any]], list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, got, codes = hook
    monkeypatch.setenv("HOOK", address)
    file = run.path.parent.parent / "rules.toml"
    codes[:] = [200, 500]
    file.write_text(
        f"[[rule]]\nname = 'a'\nwhen = '{ALWAYS}'\nwebhook = '{address}'\n[[rule]]\nname = 'b'\nwhen = '{MOVED}'\nwebhook = '$HOOK'"
    )
    assert cli.main(["watch", "run", "--rules", str(file), "--once"]) == 0
    assert [(one["rule"], one["round"]) for one in got] == [("a", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    out, err = capsys.readouterr()
    assert err.count("webhook failed: the server said 500.") == 2, "once a rule, not once a round"
    assert TOKEN not in out + err + actions.of_run(run).path.read_text()
    assert [state for rule, _, action, state in log_of(run) if action == "webhook" and state != "begun"] == ["done", *["failed"] * 4]


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ({"command": ["no-such-program-here"]}, "command failed: it cannot be started: No such file"),
        ({"command": ["sh", "-c", "exit 3"]}, "command failed: it ended with exit code 3."),
        ({"command": ["sleep", "5"]}, "command failed: it took longer than 0.2 s"),
        ({"webhook": f"http://127.0.0.1:9/{TOKEN}"}, "webhook failed: Connection refused."),
    ],
)
def test_a_failing_notification_warns_once_and_the_watching_goes_on(
    run: Run, action: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "COMMAND_S", 0.2)
    said, warned = follow(run.path, made(action))
    assert len(said) == 3 and len(warned) == 1 and words in warned[0] and TOKEN not in warned[0]
    assert [state for _, _, _, state in log_of(run)] == ["fired", "begun", "failed"] * 3


# stop and rollback ------------------------------------------------------------------------------------------------------


def test_a_rollback_goes_on_from_the_last_good_round_with_the_rules_settings(run: Run, idle: None) -> None:
    given = made({"when": MOVED, "rollback": {"edit": {"share": 0.5}, "rounds": 3}})
    said, _ = follow(run.path, given, once=False)
    (fork,) = (found for found in store.discover(recorded=False) if found.id != "run")
    assert (fork.parent["run"], fork.parent["kind"], fork.parent["round"]) == ("run", "forked", 0)
    assert fork.parent["changed"].keys() == {"edit.share", "rounds"} and fork.config.edit.share == 0.5
    assert said[-1] == f"run: rule r0: rollback: {fork.id} goes on from round 0"
    assert log_of(run) == [("r0", 1, "fired", "fired"), ("r0", 1, "rollback", "begun"), ("r0", 1, "rollback", "done")]
    assert follow(run.path, given) == ([], []) and len(store.discover(recorded=False)) == 2
    launch.delete(fork)
    assert "was rolled back, and run" in follow(run.path, given)[1][0] and len(store.discover(recorded=False)) == 1


def test_where_no_rollback_is_possible_a_sentence_says_so(run: Run, idle: None) -> None:
    given = made({"rollback": {"edit.share": 0.5}})
    assert "no round before round 0 is finished and good" in follow(run.path, given)[1][0]
    figures = run.metrics().filter(metric="kl_from_start", test_set="everyday").sort("round")["value"].to_list()
    assert figures[1] < figures[2], "the fake engine drifts"
    later = {"name": "later", "when": f"kl_from_start > {(figures[1] + figures[2]) / 2!r}", "test_set": "everyday"}
    assert not run.stage(1, "plain", "train").file(WEIGHTS).exists()
    sentence = follow(run.path, made({**later, "rollback": {"train": {"lr": 3e-4}}}))[1][0]
    assert "rollback failed: train.lr cannot change at round 1: the weights of arm 'plain' were deleted" in sentence
    assert len(store.discover(recorded=False)) == 1
    said, warned = follow(run.path, made({**later, "name": "again", "rollback": {"filter": {"on": False}}}))
    assert "goes on from round 1; weights of plain were deleted there (keep = newest), so they are trained again" in said[-1] and not warned


@pytest.mark.slow
def test_a_live_run_is_stopped(home: Path) -> None:
    run = launch.launch(small_config(home, arms=["plain"], rounds=2_000), home / "runs" / "live")
    said, warned = follow("live", made({"when": MOVED, "stop": True}), once=False)
    assert launch.state(run) == "stopped" and not warned[1:], warned
    assert "live: rule r0: stop: the run is stopped" in said
    assert log_of(run)[:3] == [("r0", 1, "fired", "fired"), ("r0", 1, "stop", "begun"), ("r0", 1, "stop", "done")]


@pytest.mark.slow
def test_a_live_run_is_rolled_back_and_its_fork_followed_to_the_end(home: Path) -> None:
    run = launch.launch(small_config(home, arms=["plain"], rounds=2_000), home / "runs" / "live")
    said, warned = follow("live", made({"when": MOVED, "rollback": {"rounds": 2, "edit": {"share": 0.5}}}), once=False)
    (fork,) = (found for found in store.discover(recorded=False) if found.id != "live")
    assert launch.state(run) == "stopped" and fork.finished("plain") == [0, 1, 2] and fork.config.edit.share == 0.5
    wait_for(lambda: launch.state(fork) == "done")
    assert f"live: rule r0: rollback: {fork.id} goes on from round 0" in said
    assert len(warned) == 1 and "has the settings of the rule already" in warned[0], "the fork is not forked for ever"
    assert {round_ for _, round_, action, _ in log_of(fork) if action == "fired"} == {1, 2}


def test_one_watcher_at_a_time_and_no_link_is_written_through(run: Run, home: Path) -> None:
    with actions.of_run(run).held(), pytest.raises(UserError, match="run is watched by another process already"):
        follow(run.path, made({}))
    run.actions_path.symlink_to(home / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        follow(run.path, made({}))
    assert not (home / "elsewhere").exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"arm": "dces"}, "rule 'r0': arm = 'dces' is not in run; it has: plain."),
        ({"test_set": "x"}, "rule 'r0': test_set = 'x' is not in run; it has: everyday, passages."),
        ({"webhook": "$NOT_THERE"}, "rule 'r0': webhook = '$NOT_THERE', but this variable holds no address"),
        ({"rollback": {"edit": {"shares": 1}}}, "rule 'r0', rollback: edit.shares is not a setting"),
        ({"rollback": {"edits": {"share": 1}}}, "rule 'r0': rollback.edits.share is not a setting"),
        ({"rollback": {"edit": {"share": 7}}}, "rule 'r0', rollback: edit.share = 7 is not allowed"),
        ({"rollback": {"seed": 7}}, "rule 'r0': rollback.seed cannot change in a run that goes on"),
    ],
)
def test_rules_that_cannot_work_here_are_refused_before_anything_is_done(run: Run, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        follow(run.path, made(row))
    assert words in str(caught.value) and not run.actions_path.exists()
    assert branch.forkable(run) == [0, 1, 2]


# units and folders ------------------------------------------------------------------------------------------------------


def test_a_dry_run_over_a_recorded_unit_is_what_its_figures_say() -> None:
    given = made({"when": "ppl > 1.5 * round0", "test_set": "everyday", "stop": True}, {"when": "loop_rate > 0.02"})
    unit = watched.find(str(UNIT), Path("no spool"), Options(), given, print, past=True)
    found = watching.dry_run(given, unit, print)
    figures = pl.read_parquet(UNIT / "metrics.parquet")
    ppl = figures.filter(metric="ppl", test_set="everyday").sort("round")
    start = ppl["value"][0]
    assert found.filter(rule="r0")["round"].to_list() == ppl.filter(pl.col("value") > 1.5 * start)["round"].to_list()
    assert (
        found.filter(rule="r1")["round"].to_list()
        == figures.filter(pl.col("value") > 0.02, metric="loop_rate").sort("round")["round"].to_list()
    )
    assert found.height and set(found.filter(rule="r0")["actions"]) == {"stop"} and not (store.runs_root() / ".watch").exists()
    with pytest.raises(UserError, match="stop needs a run of this machine, collapse/seed-0/plain is none"):
        follow(UNIT, given)


def write(folder: Path, round_: int, texts: int = 12, loops: int = 0) -> Path:
    """A round of somebody else's."""
    folder.mkdir(exist_ok=True)
    path = folder / f"gen-{round_}.jsonl"
    rows = [f"one day {i} the {round_} cats of town {i * 7} went out" if i >= loops else "so it goes " * 30 for i in range(texts)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return path


def test_a_growing_folder_is_computed_round_by_round(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, computed, warned = home / "theirs", list[int](), list[str]()
    real = diagnosing.Figures.add
    monkeypatch.setattr(diagnosing.Figures, "add", lambda self, round_: (computed.append(round_), real(self, round_))[1])
    (home / "spool").mkdir()
    source = watched.WatchedFolder(folder, home / "spool", Options(), made({}), warned.append)

    def news(**facts: Any) -> tuple[list[int], list[int]]:
        computed.clear()
        found = source.news(once=True)
        assert found.filter(metric="loop_rate")["round"].to_list() == computed
        return list(computed), sorted(set(found["round"]))

    write(folder, 1)
    assert news()[0] == [1] and news()[0] == []
    write(folder, 2)
    assert news()[0] == [2], "only the new round"
    write(folder, 3, texts=8)
    assert news()[0] == [1, 2, 3], "equal budgets: a smaller round changes all"
    bad = folder / "gen-4.jsonl"
    bad.write_text('{"text": 5}\n')
    assert news()[0] == news()[0] == [] and len(warned) == 1 and "text is a number. " not in warned[0] and "left out" in warned[0]
    write(folder, 4)
    assert news()[0] == [4]
    write(folder, 2, loops=3)
    assert news()[0] == [1, 2, 3, 4], "a file changed"
    write(folder, 0)
    assert news()[0] == [0, 1, 2, 3, 4], "the first round is what others are compared with"
    write(folder, 5)
    assert source.news(once=False).is_empty(), "it may not be whole yet"


def test_a_folder_of_others_from_dry_run_to_the_log(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = home / "theirs", home / "rules.toml"
    for round_ in range(3):
        write(folder, round_, loops=2 * round_)
    file.write_text("[[rule]]\nname = 'loops'\nwhen = 'loop_rate > 0.2'\n[[rule]]\nname = 'h'\nwhen = 'entropy_generated < 1'\n")
    assert cli.main(["watch", str(folder), "--rules", str(file), "--dry-run", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert [(row["rule"], row["round"], row["arm"]) for row in json.loads(out)] == [("loops", 2, "own")]
    assert "rule 'h': entropy_generated of own is unknown in round 0: needs the model of each round" in err
    assert actions.of_others() == []
    for _ in range(2):
        assert cli.main(["watch", str(folder), "--rules", str(file), "--once"]) == 0
    assert [(one["source"], one["rule"], one["round"]) for one in actions.of_others()] == [("theirs", "loops", 2)]
    assert cli.main(["watch", str(home / "nothing"), "--once"]) == 2 and cli.main(["watch", str(home / "cache")]) == 2
    (home / "empty").mkdir()
    assert cli.main(["watch", str(home / "empty"), "--once"]) == 2 and cli.main(["watch", str(folder), "--every", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 4 + 2
