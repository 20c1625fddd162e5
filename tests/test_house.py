"""House rules that no linter checks: sizes, imports of the web process, what tracked files may say, where files lie."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES, FILE_LINES, LOOP_LINES = 45, 400, 150
HEAVY = {"torch", "transformers", "umap", "hdbscan", "sklearn", "numba", "accelerate", "sentence_transformers", "bert_score", "scipy"}
TOP_LEVEL = {
    "pyproject.toml", "README.md", "app.py", "pages", "dces_core", "tests", "data",
    "Makefile", "constraints.txt", ".ci", ".streamlit", ".gitignore", "docs", "examples", "LICENSE", "CHANGELOG.md", "SECURITY.md",
}  # fmt: skip
#: Directories of one machine; a path that only begins like one (/workers) is none.
MACHINE_PATH = re.compile(r"(?<![\w.~$}*-])/(?:work|root|home|tmp/setup)(?![\w-])")
REGISTRIES = {
    "org": ("pypi", "pythonhosted", "anaconda", "npmjs", "download.pytorch"),
    "io": ("ghcr", "docker", "quay", "crates"),
    "co": ("huggingface",),
}
HOSTS = re.compile("|".join(rf"\b{re.escape(name)}\.{end}\b" for end, names in REGISTRIES.items() for name in names))


@cache
def tracked() -> tuple[str, ...]:
    """Paths that are in the repository or about to be: everything that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return tuple(sorted(path for path in set(done.stdout.splitlines()) if (ROOT / path).is_file()))


def sources() -> list[Path]:
    """Python files outside the tests."""
    return [ROOT / path for path in tracked() if path.endswith(".py") and not path.startswith("tests/")]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert len(lengths) > 50
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}
    assert lengths["dces_core/rounds.py"] < LOOP_LINES


def test_functions_are_short() -> None:
    found = [(path, node) for path in sources() for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
    lengths = {f"{path.relative_to(ROOT)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for path, node in found}
    assert len(lengths) > 300
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """Modules that executing these statements imports: not those inside functions or under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif not isinstance(node, ast.FunctionDef) and "TYPE_CHECKING" not in ast.dump(getattr(node, "test", ast.Pass())):
            for part in ("body", "orelse", "finalbody"):
                yield from imported(getattr(node, part, []))
            yield from imported([statement for handler in getattr(node, "handlers", []) for statement in handler.body])


def file_of(module: str) -> Path | None:
    """The file of a module of this project."""
    path = ROOT / module.replace(".", "/")
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if module.startswith("dces_core") and file.is_file()), None
    )


def web_files() -> set[Path]:
    """app.py, the pages, and all that they import when they are opened."""
    todo = [ROOT / "app.py", *sorted((ROOT / "pages").glob("*.py"))]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += [file for name in imported(parsed(path).body) if (file := file_of(name))]
    return seen


def test_web_process_imports_nothing_heavy() -> None:
    found = web_files()
    assert {ROOT / "dces_core" / name for name in ("config.py", "store.py", "launch.py", "records.py")} <= found
    heavy = {
        f"{path.relative_to(ROOT)} imports {name}" for path in found for name in imported(parsed(path).body) if name.split(".")[0] in HEAVY
    }
    assert heavy == set()


def test_import_walk_sees_what_matters() -> None:
    code = (
        "import a\nfrom b.c import d\ndef f():\n    import e\nclass C:\n    import g\ntry:\n    import h\nexcept OSError:\n    import i\n"
    )
    code += "if TYPE_CHECKING:\n    import j\nwith x:\n    import k\n"
    assert set(imported(ast.parse(code).body)) == {"a", "b.c", "b.c.d", "g", "h", "i", "k"}


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data[:8192]:
            lines = data.decode("utf-8", "replace").splitlines()
            found += [f"{name}:{number}" for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line) or HOSTS.search(line)]
    assert found == []


@pytest.mark.parametrize("line", ["cd /ro" + "ot/x", "'/ho" + "me'", "https://pypi" + ".org/simple", "see /wo" + "rk/main."])
def test_forbidden_names_are_found(line: str) -> None:
    assert MACHINE_PATH.search(line) or HOSTS.search(line)


@pytest.mark.parametrize("line", ["/workers/homework", "runs_root/x", "framework/home-made", "../home", "Path.home()", "/homes"])
def test_other_names_are_not(line: str) -> None:
    assert not MACHINE_PATH.search(line) and not HOSTS.search(line)


def test_top_level_holds_only_what_it_may() -> None:
    assert {name.split("/")[0] for name in tracked()} - TOP_LEVEL == set()


def tree() -> dict[str, str]:
    """Path -> words, from the README's tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    found, folders = {}, []
    for line in text.splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+)(?: {2,}(.+))?", line)
        assert match, line
        depth = len(match[1]) // 2
        folders[depth:] = [match[2]]
        path = "".join(folders)
        assert path not in found, f"{path} is listed twice"
        found[path] = match[3] or ""
    return found


def test_readme_lists_every_file_of_the_top_level_the_pages_and_the_core() -> None:
    inside = {name for name in tracked() if name.startswith(("dces_core/", "pages/")) and not name.endswith("__init__.py")}
    top = {name if "/" not in name else name.split("/")[0] + "/" for name in tracked()}
    listed = tree()
    assert {path for path in listed if not path.endswith("/")} == inside | {path for path in top if not path.endswith("/")}
    assert {path for path in listed if path.count("/") == 1 and path.endswith("/")} == {path for path in top if path.endswith("/")}
    assert {path: words for path, words in listed.items() if not path.endswith("/") and not 4 <= len(words.split()) <= 8} == {}
