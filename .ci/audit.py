"""What is installed: exactly the versions of constraints.txt, licences known, no known weakness where the database can be asked.

python .ci/audit.py        exit code 1: something is wrong; what cannot be checked here is skipped with its reason
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s;#]+)")
#: Words of the licences that may be used; the full text counts where a package names none.
LICENCES = re.compile(
    r"\bMIT\b|Apache|\bBSD\b|\bMPL\b|Mozilla Public|\bISC\b|\bPSF\b|Python Software Foundation|HPND|Unlicense|Zlib"
    r"|Permission is hereby granted|Redistribution and use in source|License agreement for matplotlib",
    re.IGNORECASE,
)
LIMIT_S = 300


def pins(text: str) -> dict[str, str]:
    """Package -> exact version."""
    return {match[1]: match[2] for line in text.splitlines() if (match := PINNED.match(line))}


def differing(wanted: dict[str, str]) -> list[str]:
    """Installed packages of another version; the local part (+cpu) names a build, not a version."""
    found = []
    for name, version in wanted.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that was not asked for
        if here.partition("+")[0] != version.partition("+")[0]:
            found.append(f"{name} is {here}, constraints.txt has {version}")
    return found


def without_licence(names: list[str]) -> list[str]:
    """Installed packages whose licence is none of the known ones."""
    found = []
    for name in names:
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if not LICENCES.search(licence_of(package)):
            found.append(f"{name}: no known licence")
    return found


def licence_of(package: metadata.Distribution) -> str:
    """Everything that a package says of its licence."""
    facts = package.metadata
    said = [facts.get("License-Expression") or "", facts.get("License") or "", *facts.get_all("Classifier", [])]
    files = [path for path in package.files or [] if re.search("licen[cs]e|copying", path.name, re.IGNORECASE)]
    for path in files:
        try:
            said.append(path.read_text()[:4000])
        except (OSError, UnicodeDecodeError):
            continue
    return "\n".join(said)


def weaknesses() -> tuple[list[str], str | None]:
    """Known weaknesses of the pinned versions, and why they could not be looked up."""
    if util.find_spec("pip_audit") is None:
        return [], "pip-audit is not installed (pip install pip-audit)"
    command = [sys.executable, "-m", "pip_audit", "-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip", "-f", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return [], "the database of weaknesses cannot be reached"
    asked = [package for package in packages if "vulns" in package]
    if not asked:
        return [], "the index that pip-audit asks knows none of the packages"
    return [f"{one['name']} {one['version']}: {flaw['id']}" for one in asked for flaw in one["vulns"]], None


def main() -> int:
    """Print a line for every check; 1 where one failed."""
    wanted = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    flaws, skipped = weaknesses()
    failed = False
    for title, found in (("versions", differing(wanted)), ("licences", without_licence(list(wanted))), ("weaknesses", flaws)):
        said = f"skipped: {skipped}" if title == "weaknesses" and skipped else "; ".join(found) or "as they should be"
        print(f"{title:<11} {said}")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
