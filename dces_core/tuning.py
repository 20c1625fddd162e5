"""The search of a TUNE.toml with Optuna: trials are ordinary runs, forked at round 0 from a run of the recipe's own settings.

All trials have one seed, one round 0 and one first pool. The journal has every value and every finished round, so the same command goes
on where it stopped, inside a trial as well; the values of trial k come from the seed, k and the trials before it, so a search that was
interrupted ends as one that was not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dces_core import launch
from dces_core.branch import fork_run
from dces_core.errors import UserError
from dces_core.seeds import seed_for
from dces_core.store import Run
from dces_core.tune import Range, Tune, field_info, recipe_text
from dces_core.tune_store import STATES, Search

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as Drawn
    from optuna.distributions import BaseDistribution

#: Trials that did all rounds under which no importance is said: five of them are the best quarter.
LEAST_TRIALS, BEST_SHARE = 20, 0.25
INSTALL = 'pip install "dces-lab[tune]"'


@dataclass
class Work:
    """One call of `dces tune`."""

    tune: Tune
    search: Search
    say: Callable[[str], None]
    facts: dict[str, Any] = field(default_factory=dict)  # of tune.json

    @property
    def arm(self) -> str:
        """The arm of all trials."""
        return self.tune.config.arm

    @property
    def definition(self) -> dict[str, Any]:
        """What trials must share to be compared."""
        config, base = self.tune.config, self.tune.base
        own = config.model_dump(mode="json", include={"name", "note", "arm", "startup", "prune_after", "fields"})
        words = {"objective_words": config.objective.words, "higher": config.objective.higher}
        return {**own, **words, "rounds": base.rounds, "settings": base.digest()}


def do_tune(work: Work, trials: int) -> launch.State:
    """Go on until there are so many trials, failed ones included: `done`, or `stopped`.

    Raises UserError before anything starts: no Optuna, another search's folder, another worker; and where the recipe itself fails.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(f"dces tune needs the package optuna, which is not installed; run: {INSTALL}.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    work.search.begin(work.definition)
    work.facts = work.search.facts() | {"definition": work.definition}
    try:
        held = FileLock(work.search.lock_path).acquire(timeout=0)
    except Timeout:
        raise UserError(f"out = {str(work.search.path)!r} has a worker already; wait for it, or stop it.") from None
    with held:
        try:
            return _search(work, trials)
        except OSError as error:
            raise UserError(
                f"out = {str(work.search.path)!r} cannot be written: {error.strerror or error}; free space, start again."
            ) from None


def _search(work: Work, trials: int) -> launch.State:
    baseline, state = _baseline(work)
    if state != "done":
        return state
    while True:
        study = open_study(work)
        running = [one.number for one in study.trials if one.state.name == "RUNNING"]
        if not running and len(study.trials) >= trials:
            save(work, study)
            return "done"
        drawn = _again(study, running[0]) if running else study.ask(_distributions(work.tune))
        save(work, study)
        if do_trial(work, baseline, study, drawn) == "stopped":
            return "stopped"
        save(work, study)
        found = work.search.read()
        assert found is not None
        trial = found.trials[drawn.number]
        value = "-" if trial.value is None else f"{trial.value:.5g}"
        words = "  ".join(f"{path}={_short(one)}" for path, one in trial.values.items())
        work.say(f"trial {drawn.number + 1}/{trials}  {trial.state:<7} {value:>9}  {words}{f'  ({trial.reason})' if trial.reason else ''}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# runs -------------------------------------------------------------------------------------------------------------------


def _baseline(work: Work) -> tuple[Run, launch.State]:
    """The recipe's own settings. Raises UserError where they fail, or where the objective is undefined with them."""
    search, base = work.search, work.tune.base
    run = search.run(None) or launch.create(base, search.run_path(None))
    if run.status().get("state") != "done":
        state = _go_on(run)
        if state == "stopped":
            return run, state
        if state == "failed":
            raise UserError(f"the recipe's own settings fail, so there is nothing to search around: {run.status().get('error')}")
    values = [(round_, *work.tune.config.objective.value(run.metrics(), round_)) for round_ in range(1, base.rounds + 1)]
    if values[-1][1] is None:
        raise UserError(f"objective: {work.tune.config.objective.words} is undefined with the recipe's own settings: {values[-1][2]}.")
    _free(run, work)
    by_round = [[round_, value] for round_, value, _ in values if value is not None]
    work.facts["baseline"] = {"number": -1, "state": "done", "values": {}, "by_round": by_round}
    return run, "done"


def _go_on(run: Run, each: Callable[[str], None] | None = None) -> launch.State:
    from dces_core.progress import follow

    run.stop_path.unlink(missing_ok=True)
    state = follow(run, lines=False, each=each)
    gc.collect()  # a finished run refers to itself, and its model is large
    return state


def _free(run: Run, work: Work) -> None:
    """Delete the weights of a run that is over: nothing goes on from them."""
    for round_ in range(1, work.tune.base.rounds + 1):
        run.prune(run.stage(round_, work.arm, "train"))


@dataclass
class _Reports:
    """Tells Optuna of a trial's finished rounds, and its run to stop where Optuna gives it up."""

    work: Work
    study: Study
    drawn: Drawn
    run: Run
    last: int = 0
    pruned: bool = False

    def look(self, line: str = "") -> None:
        """Called after every finished stage."""
        tune = self.work.tune
        for round_ in self.run.finished(self.work.arm):
            if round_ <= self.last or self.pruned:
                continue
            self.last = round_
            value, _ = tune.config.objective.value(self.run.metrics(), round_)
            if value is None:
                continue
            if round_ not in self.study.trials[self.drawn.number].intermediate_values:
                self.drawn.report(value, round_)
            self.pruned = round_ < tune.base.rounds and self.drawn.should_prune()
            save(self.work, self.study)
        if self.pruned:
            self.run.stop_path.touch()


def do_trial(work: Work, baseline: Run, study: Study, drawn: Drawn) -> launch.State:
    """Do a trial's run, or go on with it, and tell Optuna how it ended; `stopped` where it is to go on later."""
    from optuna.trial import TrialState

    search = work.search
    try:
        run = search.run(drawn.number) or fork_run(baseline, 0, work.tune.with_values(drawn.params), search.run_path(drawn.number))
    except UserError as error:
        return _fail(study, drawn, str(error))
    reports = _Reports(work, study, drawn, run)
    reports.look()
    state = run.status().get("state")
    if not reports.pruned and state != "done":
        state = _go_on(run, reports.look)
        if state == "stopped" and not reports.pruned:
            return "stopped"
    if reports.pruned:
        study.tell(drawn, state=TrialState.PRUNED)
    elif state == "failed":
        _fail(study, drawn, str(run.status().get("error")))
    else:
        value, reason = work.tune.config.objective.value(run.metrics(), work.tune.base.rounds)
        if value is None:
            _fail(study, drawn, f"the objective is undefined: {reason}")
        else:
            study.tell(drawn, value)
    _free(run, work)
    return "done"


def _fail(study: Study, drawn: Drawn, reason: str) -> launch.State:
    from optuna.trial import TrialState

    drawn.set_user_attr("reason", reason)
    study.tell(drawn, state=TrialState.FAIL)
    return "failed"


# Optuna -----------------------------------------------------------------------------------------------------------------


def open_study(work: Work) -> Study:
    """The search as the journal has it; its next trial is drawn from the seed and the trial's number."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    config, path = work.tune.config, work.search.journal_path
    path.with_name(path.name + ".lock").unlink(missing_ok=True)  # of a killed process; worker.lock is ours
    if path.exists():  # a killed writer's torn line would spoil the next one
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            path.write_bytes(data[: data.rfind(b"\n") + 1])
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
        known = storage.get_all_studies()
        number = storage.get_n_trials(known[0]._study_id) if known else 0
        return optuna.create_study(
            storage=storage,
            study_name="tune",
            direction="maximize" if config.objective.higher else "minimize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=seed_for(config.seed, number, "tune") % 2**32),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=config.startup, n_warmup_steps=config.prune_after),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); restore it, or choose another --out.") from None


def _again(study: Study, number: int) -> Drawn:
    """A trial that was interrupted."""
    import optuna

    return optuna.Trial(study, study.trials[number]._trial_id)


def _distributions(tune: Tune) -> dict[str, BaseDistribution]:
    return {path: _distribution(path, range_) for path, range_ in tune.config.fields.items()}


def _distribution(path: str, range_: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    info = field_info(path)
    assert info is not None
    if range_.choices:
        return CategoricalDistribution(range_.choices)
    assert range_.low is not None and range_.high is not None
    if info.annotation is int:
        return IntDistribution(int(range_.low), int(range_.high), log=range_.log)
    return FloatDistribution(float(range_.low), float(range_.high), log=range_.log)


def save(work: Work, study: Study) -> None:
    """Write what people read: tune.json, and the best settings as a recipe."""
    from optuna.trial import FrozenTrial

    def entry(one: FrozenTrial) -> dict[str, Any]:
        by_round = [[round_, value] for round_, value in sorted(one.intermediate_values.items())]
        own = {"number": one.number, "state": STATES.get(one.state.name, "running"), "values": one.params, "by_round": by_round}
        return {**own, "reason": one.user_attrs.get("reason")}

    importance, reason = importance_of(study)
    trials = [entry(one) for one in study.trials]
    work.facts |= {"trials": trials, "importance": importance, "importance_reason": reason}
    work.search.write(work.facts)
    found = work.search.read()
    if found and found.best:
        text = recipe_text(work.tune.with_values(found.best.values))
        if text != found.recipe:
            work.search.write_recipe(text)


def importance_of(study: Study) -> tuple[dict[str, float] | None, str | None]:
    """The share of each field in what tells the best quarter of the trials from all (PED-ANOVA), or why it is not said."""
    import optuna

    done = sum(one.state.name == "COMPLETE" for one in study.trials)
    if done < LEAST_TRIALS:
        return None, f"needs {LEAST_TRIALS} trials that did all rounds; there are {done}"
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    )
    if not sum(found.values()) > 0:
        return None, "no field tells the best trials from the others"
    return {path: float(value) for path, value in found.items()}, None
