"""Make .venv and install the product with exact versions; says first how much will be downloaded. Standard library only.

    python3 .ci/setup_env.py [--dev] [--bench]

A torch >= 2.13 in the Python that runs this is kept: the environment then sees that Python's packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
import venv
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TORCH = (2, 13)


def torch_found() -> bool:
    """Whether the base Python has a torch that the product can use."""
    try:
        found = metadata.version("torch").split("+")[0].split(".")
        return tuple(map(int, found[:2])) >= TORCH
    except (metadata.PackageNotFoundError, ValueError):
        return False


def constraints(keep_torch: bool) -> Path:
    """The constraints file, without torch where the base Python's is kept."""
    path = ROOT / "constraints.txt"
    if not keep_torch:
        return path
    copy = Path(tempfile.mkdtemp()) / "constraints.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    copy.write_text("\n".join(line for line in lines if not line.startswith("torch==")), encoding="utf-8")
    return copy


def size_of(url: str) -> int:
    """Bytes of one file that would be downloaded; 0 where nobody says."""
    if url.startswith("file:"):
        path = Path(unquote(urlsplit(url).path))
        return path.stat().st_size if path.is_file() else 0
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except OSError:
        return 0


def planned_bytes(pip: list[str]) -> int | None:
    """What pip would download, None where it cannot tell beforehand."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run([*pip, "--dry-run", "--quiet", "--report", str(report)], capture_output=True, check=False)
        if done.returncode or not report.is_file():
            return None
        urls = [item["download_info"]["url"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(size_of, [url for url in urls if not url.endswith(str(ROOT))]))


def main(arguments: list[str]) -> int:
    """Make and fill the environment; the exit code is pip's."""
    keep = torch_found()
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True, system_site_packages=keep)
    extras = [name for name in ("dev", "bench") if f"--{name}" in arguments]
    target = str(ROOT) + (f"[{','.join(extras)}]" if extras else "")
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "-c", str(constraints(keep)), "-e", target]
    print("Looking up what is missing ...", flush=True)
    size = planned_bytes(pip)
    if size is None:
        print("Installing (pip cannot tell the download's size beforehand; the CUDA build of torch alone is several GB) ...", flush=True)
    else:
        print(f"Installing: {size / 1e6:,.0f} MB to download, plus 98 MB of model weights once ...", flush=True)
    return subprocess.run([*pip, "--quiet"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
