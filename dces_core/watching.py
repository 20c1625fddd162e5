"""`dces watch`: new rounds come in, rules are looked at, actions are taken once. What was done is in the log (actions.py).

An action that failed, or was cut off, is not tried again; one that was planned and never begun is, by the next watcher.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from dces_core import branch, launch, preflight, store
from dces_core.actions import FIRED
from dces_core.config import RunConfig, parse
from dces_core.errors import UserError, quoted, reason_of
from dces_core.rules import Found, History, Rule, evaluate, good_rounds, is_address
from dces_core.store import Run
from dces_core.watched import Say, Watched, WatchedRun

EVERY_S = 2.0
COMMAND_S = 30.0
WEBHOOK_S = 10.0
FIRINGS: dict[str, pl.DataType] = {
    "rule": pl.String(), "round": pl.Int64(), "arm": pl.String(), "test_set": pl.String(), "metric": pl.String(),
    "value": pl.Float64(), "limit": pl.Float64(), "when": pl.String(), "actions": pl.String(),
}  # fmt: skip


class Failed(Exception):
    """An action that could not be done: why, in words without secrets."""


def check(rules: Sequence[Rule], source: Watched, act: bool) -> None:
    """Raise UserError where a rule cannot work on what is watched. `act`: whether its actions will be taken."""
    for rule in rules:
        for name, value, known in (("arm", rule.arm, source.arms), ("test_set", rule.test_set, source.test_sets)):
            if value and value not in known:
                has = f"it has: {', '.join(known)}" if known else "it has none"
                raise UserError(f"rule {rule.name!r}: {name} = {value!r} is not in {source.name}; {has}.")
        if rule.webhook.startswith("$") and act and not is_address(os.environ.get(rule.webhook[1:], "")):
            raise UserError(f"rule {rule.name!r}: webhook = {rule.webhook!r}, but this variable holds no address; export it.")
        if act and source.run is None and (rule.stop or rule.rollback is not None):
            what = "stop" if rule.stop else "rollback"
            raise UserError(
                f"rule {rule.name!r}: {what} needs a run of this machine, {source.name} is none; take it out, or use --dry-run."
            )
        if source.run is not None and rule.rollback is not None:
            stronger(source.run, rule)


def stronger(run: Run, rule: Rule) -> RunConfig:
    """The run's settings with those of the rule's rollback. Raises UserError where a fork cannot have them."""
    values = run.config.model_dump(mode="json")
    for path, value in branch.flat(rule.rollback or {}).items():
        *sections, last = path.split(".")
        target: Any = values
        for name in sections:
            target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise UserError(f"rule {rule.name!r}: rollback.{path} is not a setting; docs/settings.md lists them all.")
        target[last] = value
        why = branch.why_fixed(path)
        if why:
            raise UserError(f"rule {rule.name!r}: rollback.{path} cannot change in a run that goes on: {why}.")
    try:
        return parse(values)
    except UserError as error:
        raise UserError(f"rule {rule.name!r}, rollback: {error}") from None


def dry_run(rules: Sequence[Rule], source: Watched, warn: Say) -> pl.DataFrame:
    """Which rule would have fired in which round, and for what (FIRINGS columns); nothing is done, nothing is written."""
    history = History()
    rounds, rows, said = sorted(history.add(source.news(once=True))), [], set[str]()
    for round_ in rounds:
        for rule in rules:
            found = evaluate(rule, history, round_)
            _say_unknown(rule, found, said, warn)
            rows += [
                {
                    "rule": rule.name, "round": hit.round, "arm": hit.arm, "test_set": hit.test_set, "metric": hit.metric,
                    "value": hit.value, "limit": hit.limit, "when": rule.when, "actions": ",".join(rule.actions),
                }
                for hit in found.hits
            ]  # fmt: skip
    return pl.DataFrame(rows, schema=FIRINGS)


def watch(rules: Sequence[Rule], source: Watched, say: Say, warn: Say, once: bool = False, every_s: float = EVERY_S) -> None:
    """Follow it until it is over, and the run that a rollback began after it. `once`: only what is there now.

    `say` is told of what was done, `warn` of what failed. Raises UserError where a rule cannot work here, or the log cannot be written.
    """
    following: Watched | None = source
    while following is not None:
        check(rules, following, act=True)
        if following.run is not None:
            following.run.refuse_links()
        with following.log.held():
            following = _Watcher(rules, following, say, warn).follow(once, every_s)


def _say_unknown(rule: Rule, found: Found, said: set[str], warn: Say) -> None:
    """Once for each rule: it cannot be told."""
    if found.unknown and rule.name not in said:
        said.add(rule.name)
        warn(f"rule {rule.name!r}: {found.unknown[0]}")


class _Watcher:
    """The watching of one source."""

    def __init__(self, rules: Sequence[Rule], source: Watched, say: Say, warn: Say) -> None:
        self.rules, self.source, self.log, self.say, self.warn = rules, source, source.log, say, warn
        self.history = History()
        self.said = set[str]()
        self.done: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}  # (rule, round) -> action -> its newest entry
        for entry in self.log.entries():
            self.done.setdefault((entry["rule"], entry["round"]), {})[entry["action"]] = entry

    def follow(self, once: bool, every_s: float) -> Watched | None:
        """Until it is over; what is to be watched then."""
        pending = {round_ for _, round_ in self.done}  # of a watcher that was killed
        while True:
            over = self.source.over()  # asked first: rounds that come meanwhile are looked at once more
            rounds = self.history.add(self.source.news(once)) | pending
            for round_ in sorted(rounds):
                self._look(round_)
            pending = set()
            if self._fork_name() or once or over:
                return self._fork()
            time.sleep(every_s)

    def _fork_name(self) -> str | None:
        """The run with which a rollback went on: then this one is history."""
        entries = [entry for actions in self.done.values() for entry in actions.values() if entry["action"] == "rollback"]
        return next((str(entry["run"]) for entry in entries if entry.get("run")), None)

    def _fork(self) -> Watched | None:
        name = self._fork_name()
        if name is None:
            return None
        try:
            return WatchedRun(store.find(name.replace(os.sep, "")))
        except UserError:
            self.warn(f"{self.source.name} was rolled back, and run {quoted(name)}, which went on, is not here any more.")
            return None

    def _look(self, round_: int) -> None:
        """All rules in one round."""
        for rule in self.rules:
            known = self.done.get((rule.name, round_), {})
            if FIRED not in known and (round_ < self.source.first or self._fork_name()):
                continue
            found = evaluate(rule, self.history, round_)
            _say_unknown(rule, found, self.said, self.warn)
            if FIRED not in known and found.hits:
                more = f", and {len(found.hits) - 1} more" * (len(found.hits) > 1)
                self._note(rule, round_, FIRED, FIRED, f"{found.hits[0].text}{more}", planned=list(rule.actions))
                self.say(f"{self.source.name}: rule {rule.name}: {found.hits[0].text}{more}")
            known = self.done.get((rule.name, round_), {})
            planned = (known.get(FIRED) or {}).get("planned") or []
            for action in rule.actions:
                if action in planned and action not in known:
                    self._act(rule, round_, action, known[FIRED]["text"])

    def _act(self, rule: Rule, round_: int, action: str, text: str) -> None:
        """One action, noted before and after."""
        self._note(rule, round_, action, "begun", "")
        do: dict[str, Callable[[Rule, int, str], tuple[str, dict[str, Any]]]] = {
            "stop": self._stop, "rollback": self._roll_back, "command": self._command, "webhook": self._webhook,
        }  # fmt: skip
        try:
            done, facts = do[action](rule, round_, text)
        except (Failed, UserError) as error:
            self._note(rule, round_, action, "failed", str(error))
            if f"{rule.name}/{action}" not in self.said:
                self.said.add(f"{rule.name}/{action}")
                self.warn(f"rule {rule.name!r}: {action} failed: {error}")
            return
        self._note(rule, round_, action, "done", done, **facts)
        self.say(f"{self.source.name}: rule {rule.name}: {action}: {done}")

    def _note(self, rule: Rule, round_: int, action: str, state: str, text: str, **facts: Any) -> None:
        entry = {"rule": rule.name, "round": round_, "action": action, "state": state, "text": text, **facts}
        self.log.add(rule.name, round_, action, state, text, **facts)
        self.done.setdefault((rule.name, round_), {})[action] = entry

    # actions ------------------------------------------------------------------------------------------------------------

    def _stop(self, rule: Rule, round_: int, text: str) -> tuple[str, dict[str, Any]]:
        run = self.source.run
        assert run is not None
        launch.stop(run)
        return f"the run is {launch.state(run)}", {}

    def _roll_back(self, rule: Rule, round_: int, text: str) -> tuple[str, dict[str, Any]]:
        """Stop the run, and go on from its last good round with the rule's settings as a new run."""
        run = self.source.run
        assert run is not None
        config = stronger(run, rule)
        if self._fork_name():
            raise Failed(f"the run was rolled back already: {self._fork_name()} goes on.")
        if not branch.changed(run.config, config):
            raise Failed("the run has the settings of the rule already; there is nothing stronger to go on with.")
        good = good_rounds(rule, self.history, [one for one in branch.forkable(run) if one < round_])
        if not good:
            raise Failed(f"no round before round {round_} is finished and good; there is nothing to go back to.")
        branch.check_fork(run, good[-1], config)
        preflight.check(config)
        launch.refuse_if_too_big(config)
        again = branch.trains_again(run, good[-1], config.arms)
        if launch.state(run) in launch.ALIVE:
            launch.stop(run)
        try:
            fork = launch.start(branch.fork_run(run, good[-1], config))
        except UserError as error:
            raise Failed(f"{error} The run is {launch.state(run)}.") from None
        more = f"; weights of {', '.join(again)} were deleted there (keep = {run.config.keep}), so they are trained again" * bool(again)
        return f"{fork.id} goes on from round {good[-1]}{more}", {"run": fork.id}

    def _facts(self, rule: Rule, round_: int, text: str) -> dict[str, Any]:
        """What a notification says."""
        own = self.done.get((rule.name, round_), {})
        outcomes = {name: entry["text"] for name, entry in own.items() if name in ("stop", "rollback")}
        said = "".join(f"; {name}: {words}" for name, words in outcomes.items())
        name = self.source.name
        return {"source": name, "rule": rule.name, "when": rule.when, "round": round_, "text": f"{name}: rule {rule.name}: {text}{said}"}

    def _command(self, rule: Rule, round_: int, text: str) -> tuple[str, dict[str, Any]]:
        """Run a program with the text in its environment and everything as JSON on its standard input."""
        facts = self._facts(rule, round_, text)
        env = {name: value for name, value in os.environ.items() if name not in launch.OURS}
        env |= {f"DCES_WATCH_{name.upper()}": str(value).replace("\0", "") for name, value in facts.items()}
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            done = subprocess.run(rule.command, input=json.dumps(facts).encode(), env=env, timeout=COMMAND_S, check=False, **quiet)
        except subprocess.TimeoutExpired:
            raise Failed(f"it took longer than {COMMAND_S:g} s and was ended.") from None
        except OSError as error:
            raise Failed(f"it cannot be started: {reason_of(error)}.") from None
        if done.returncode:
            raise Failed(f"it ended with exit code {done.returncode}.")
        return "the program ended well", {}

    def _webhook(self, rule: Rule, round_: int, text: str) -> tuple[str, dict[str, Any]]:
        """Post the facts as JSON. What goes wrong is told without the address, which may hold a token."""
        address = os.environ.get(rule.webhook[1:], "") if rule.webhook.startswith("$") else rule.webhook
        body = json.dumps(self._facts(rule, round_, text)).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=WEBHOOK_S) as answer:
                return f"the server said {answer.status}", {}
        except urllib.error.HTTPError as error:
            with error:
                raise Failed(f"the server said {error.code}.") from None
        except urllib.error.URLError as error:
            why = reason_of(error.reason) if isinstance(error.reason, OSError) else "the address cannot be reached"
            raise Failed(f"{why}.") from None
        except Exception as error:  # a server may answer anything: http.client has many errors, and they quote what they read
            raise Failed(f"{'no answer in time' if isinstance(error, TimeoutError) else type(error).__name__}.") from None
