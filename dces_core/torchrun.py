"""One run on several processes under torchrun: what starts them and judges their end, and what each of them does.

`dces run RECIPE --launcher torchrun --processes 2` makes the run and calls `supervise`; torchrun starts `python -m dces_core.torchrun DIR`
once per rank. Rank 0 is the run's worker (worker.py); ranks.py is how the others serve it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from dces_core import launch, machine, ranks
from dces_core.config import RunConfig, Train
from dces_core.errors import UserError
from dces_core.estimate import estimate, free_memory_bytes
from dces_core.events import Events, Stopped
from dces_core.redact import guard_streams, redact
from dces_core.store import Run

LEADER_GONE = 3  # how a rank ends whose leader is gone: not its own fault
OWN_ENDS = (0, LEADER_GONE, -signal.SIGTERM)


def add_options(command: Any) -> None:
    """`--launcher` and `--processes`."""
    command.add_argument("--launcher", choices=("torchrun",), help="compute on several processes, one per device (docs/devices.md)")
    command.add_argument("--processes", type=int, metavar="N", help="with --launcher: how many (default: 1)")


def processes_of(options: argparse.Namespace) -> int:
    """How many processes were asked for, 0 without a launcher. Raises UserError for a number that means nothing."""
    wanted: int | None = options.processes
    if options.launcher is None and wanted is not None:
        raise UserError(f"--processes = {wanted} needs --launcher torchrun.")
    if wanted is not None and wanted < 1:
        raise UserError(f"--processes = {wanted} must be at least 1.")
    return 0 if options.launcher is None else wanted or 1


def facts_of(config: RunConfig, count: int) -> dict[str, Any]:
    """What run.json says of a run on `count` processes (0: on one, without a launcher). Raises UserError where it cannot be one."""
    if not count:
        return {}
    check(config, count)
    given = "OMP_NUM_THREADS" in os.environ
    threads = machine.threads() if given else max(1, machine.threads() // count)
    return {"cpu": {**machine.cpu(), "threads": threads}, "launcher": {"name": "torchrun", "processes": count}}


def check(config: RunConfig, count: int) -> None:
    """Raise UserError where these settings cannot be computed by `count` processes here."""
    if config.engine != "hf":
        raise UserError(f"--launcher torchrun needs engine = 'hf' (now {config.engine!r}): the fake engine has nothing to share.")
    fields = ("lora_rank", "micro_batch_size", "gradient_checkpointing", "optimizer")
    other = [name for name in fields if getattr(config.train, name) != Train.model_fields[name].default]
    if other:
        raise UserError(f"--launcher torchrun trains every weight by FSDP and knows no train.{other[0]}; leave it out, or use one process.")
    from dces_core.engines.hf import pick_device

    device = pick_device(config.device).type
    if device == "mps":
        raise UserError("--launcher torchrun needs device = 'cpu' or 'cuda' (now 'mps').")
    if device == "cuda":
        import torch

        if count > torch.cuda.device_count():
            raise UserError(f"--processes = {count}, but there are {torch.cuda.device_count()} cards: one process per card.")
        return
    wanted, free = estimate(config)["memory_bytes"], free_memory_bytes()
    if wanted is not None and count * wanted > free:
        raise UserError(
            f"--processes = {count} needs up to {count * wanted / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: use fewer."
        )


def supervise(run: Run, count: int) -> launch.State:
    """Do the run on `count` processes and return its state once all have ended; a rank that died makes it failed, with the reason."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    check(run.config, count)
    os.environ["OMP_NUM_THREADS"] = str(run.threads)  # torchrun and Accelerate would each choose another number
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="dces-ranks-") as folder:
        meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", f"--rdzv-id={Path(folder).name}", "--local-addr=127.0.0.1"]
        options = [*meeting, "--nnodes=1", f"--nproc-per-node={count}", f"--log-dir={folder}"]
        parsed = parse_args([*options, "--module", "dces_core.torchrun", str(run.path)])  # type: ignore[no-untyped-call]
        config, command, arguments = config_from_args(parsed)
        try:
            elastic_launch(config, command)(*arguments)
        except ChildFailedError as error:
            _judge(run, count, error.failures)
        except SignalException as error:
            print(f"dces: {signal.Signals(error.sigval).name}", file=sys.stderr)
    return launch.state(run)


def _judge(run: Run, count: int, failures: dict[int, Any]) -> None:
    """Make the run failed where a rank died by itself; what rank 0 said of its own end stands."""
    status = run.status()
    told = status.get("state") == "failed" and not str(status.get("error")).startswith(ranks.LOST)
    fine = {rank: OWN_ENDS if rank else (*OWN_ENDS, 1, 2) for rank in failures}
    guilty = [(rank, failure) for rank, failure in sorted(failures.items()) if failure.exitcode not in fine[rank]]
    if told or not guilty or run.stop_path.exists() or status.get("state") == "done":
        return
    rank, failure = guilty[0]
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
    else:
        how = f"failed: {redact(' '.join(str(failure.message).split())[:300])}"
    events = Events(run, {**status, "state": "queued"})
    try:
        events.state("failed", error=f"rank {rank} of {count} {how}; {ranks.KEPT}.", waiting_for=None, queue_position=None)
    finally:
        events.close()


def main() -> int:
    """One rank. Rank 0: 0 done or stopped, 1 failed, 2 refused. The others: 0 when it has let them go, 3 when it is gone."""
    run = Run(Path(sys.argv[1]).absolute())
    guard_streams()
    ranks.end_with_parent()
    from dces_core.engines.hf import pick_device

    together = ranks.join(pick_device(run.config.device).type)
    return _lead(run, together) if together.rank == 0 else _follow(run, together)


def _lead(run: Run, together: ranks.Ranks) -> int:
    from dces_core.worker import run_foreground

    try:
        state = run_foreground(run, lambda text: print(text, file=sys.stderr, flush=True))
        together.leave()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except (ranks.RanksLost, Stopped):
        return 0  # the run is over and says how; a rank that would not wait for its dismissal changes nothing
    return 1 if state == "failed" else 0


def _follow(run: Run, together: ranks.Ranks) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback at Ctrl-C
    machine.use_threads(run.threads)
    models: list[Any] = []

    def do(name: str, arguments: tuple[Any, ...]) -> Any:
        from dces_core.engines.sharded import ShardedModel

        if name == "open":
            models[:] = [ShardedModel(run.config, together)]
            return None
        return models[0].answer(name, arguments)

    try:
        together.serve(do)
    except ranks.RanksLost:
        return LEADER_GONE
    return 0


def _recorded() -> int | None:
    """`main`, an error of which torchrun hears."""
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(main)()


if __name__ == "__main__":
    code = 1
    try:
        code = _recorded() or 0
    except Exception:
        import traceback

        print(redact(traceback.format_exc()), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a collective that was broken off keeps threads that never end
