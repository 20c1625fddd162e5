"""What no source file may do: run text as code, load pickles, start a shell; limits of what comes in, and inert exports."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser

import polars as pl
import pytest
from test_house import ROOT, parsed, sources

from dces_core import export
from dces_core.config import RunConfig
from dces_core.ui import comparator, read, report

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec", "compile", "__import__"}
FORMULAS = ("=1+1", "+1", "-1", "@x", "\tx", "\rx")


def name_of(node: ast.expr) -> str:
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def breaches(tree: ast.AST) -> Iterator[str]:
    """What a file does and may not do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in PICKLES)
        if isinstance(node, ast.Call):
            called, given = name_of(node.func), {word.arg: word.value for word in node.keywords}
            if called in SHELLS:
                yield called
            if called == "torch.load" and not is_constant(given.get("weights_only"), True):
                yield called
            yield from (
                f"{word}={ast.unparse(given[word])}"
                for word in ("shell", "trust_remote_code", "allow_pickle")
                if word in given and not is_constant(given[word], False)
            )
        if isinstance(node, ast.Dict):
            words = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            yield from (f"{word} in a dict" for word in words & {"shell", "trust_remote_code", "allow_pickle"})


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_source_runs_text_loads_pickles_or_starts_a_shell() -> None:
    files = sources()
    assert len(files) > 80
    assert {f"{path.relative_to(ROOT)}: {what}" for path in files for what in breaches(parsed(path))} == set()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "import os\nos.system('x')", "eval('1')", "exec(x)", "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)",
        "f(trust_remote_code=yes)",
        "f(**{'trust_remote_code': True})", "np.savez(p, allow_pickle=True)",
    ],
)  # fmt: skip
def test_breaches_are_found(code: str) -> None:
    assert list(breaches(ast.parse(code)))


@pytest.mark.parametrize("code", ["torch.load(p, weights_only=True)", "model.eval()", "f(trust_remote_code=False)", "re.compile('x')"])
def test_other_calls_are_not(code: str) -> None:
    assert list(breaches(ast.parse(code))) == []


def test_every_model_is_loaded_without_remote_code() -> None:
    """transformers' default is False too; hub ids and folders say it all the same. GGUF files hold no code."""
    text = (ROOT / "dces_core/engines/hf.py").read_text(encoding="utf-8")
    calls = re.findall(r"from_pretrained\((.*?)\)", text, re.DOTALL)
    assert calls and all("trust_remote_code=False" in call for call in calls)
    assert "use_safetensors=True" in text


def test_no_setting_lets_code_in() -> None:
    assert not re.search("trust|remote|pickle|shell|exec", json.dumps(RunConfig.model_json_schema()["properties"]).replace("executes", ""))


def test_limits_of_the_server() -> None:
    said = tomllib.loads((ROOT / ".streamlit/config.toml").read_text(encoding="utf-8"))
    assert said["server"]["address"] == "127.0.0.1" and said["server"]["maxUploadSize"] <= 20
    assert said["server"]["allowedHosts"] == ["localhost", "127.0.0.1"]
    assert not {"enableXsrfProtection", "enableCORS", "enableAgentApi"} & said["server"].keys(), "Streamlit's defaults protect"
    assert said["client"]["showErrorDetails"] == "type"


def test_make_demo_stays_on_this_machine() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ndemo:")[1].split("\n\n")[0]
    assert "streamlit run app.py" in recipe and "--server.address" not in recipe


def test_every_csv_of_the_project_is_escaped() -> None:
    """write_csv is called where the escaping is, and nowhere else."""
    found = {path.relative_to(ROOT).as_posix() for path in sources() if re.search(r"write_csv|csv\.writer", path.read_text("utf-8"))}
    assert found <= {"dces_core/export.py", "dces_core/ui/read.py"}
    frame = pl.DataFrame({"text": FORMULAS, "n": range(len(FORMULAS))})
    for made in (export.to_csv(frame), read.csv_of(frame).decode()):
        cells = pl.read_csv(made.encode())["text"].to_list()
        assert [cell[0] for cell in cells] == ["'"] * len(FORMULAS)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_report_is_inert() -> None:
    html = report.report(HOSTILE, [HOSTILE], [report.Chapter(HOSTILE, HOSTILE, [])])
    assert "default-src 'none'" in html and "<img src=x" not in html
    assert Tags(html).tags.count("script") == 1, "plotly.js alone"


def test_comparator_json_is_data_alone() -> None:
    row = {"prompt_id": "p", "prompt": HOSTILE, "topic": HOSTILE, "text": HOSTILE, "reference": HOSTILE}
    row |= {"rep_4": 0.0, "bertscore_f1": None, "tokens": 3}
    body = json.loads(comparator.to_bytes(comparator.example(row, row)))
    assert body["output_text_a"] == HOSTILE == body["input_text"]


def test_security_page_names_tests_that_are_there() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(named) >= 6 and all((ROOT / name).is_file() for name in named)
