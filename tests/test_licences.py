"""Licences of everything that the extras for running, exporting and training bring, as the packages declare them.

`pytest tests/test_licences.py -s` lists them. What a wheel bundles without declaring it is not seen here: OpenCV's
brings FFmpeg (LGPL 2.1).
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
TESTS_ONLY = ("dev", "bench")
COPYLEFT = re.compile(r"GPL|General Public|MPL|Mozilla|EUPL|CDDL|EPL|SSPL|BUSL|Commons Clause", re.IGNORECASE)
ACCEPTED = {"certifi": "Mozilla Public License 2.0 (MPL 2.0)"}  # a list of certificates, used as it is


def licence(package: Distribution) -> str:
    data = package.metadata
    classifiers = [
        c.split("::")[-1].strip() for c in data.get_all("Classifier") or [] if c.startswith("License")
    ]
    text = (data.get("License") or "").strip().splitlines()[:1]
    return data.get("License-Expression") or "; ".join(classifiers) or "".join(text)


def licences() -> tuple[dict[str, str], set[str]]:
    """Licence of each installed package that the extras need, directly or not; and what is not installed here."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = {k: v for k, v in project["optional-dependencies"].items() if k not in TESTS_ONLY}
    open_ = [Requirement(r) for r in (*project["dependencies"], *(r for v in extras.values() for r in v))]
    found: dict[str, str] = {}
    absent: set[str] = set()
    while open_:
        wanted = open_.pop()
        name = canonicalize_name(wanted.name)
        if name in found or name in absent:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            absent.add(name)
            continue
        found[name] = licence(package)
        for needed in map(Requirement, package.requires or []):
            for extra in wanted.extras or {""}:
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    open_.append(needed)
    return found, absent


def test_no_copyleft_by_surprise() -> None:
    found, absent = licences()
    for name, text in sorted(found.items()):
        print(f"{name}: {text}")
    print(f"not installed here: {', '.join(sorted(absent))}")
    assert {"numpy", "onnxruntime", "fastapi", "uvicorn"} <= set(found)
    assert {n for n, text in found.items() if not text} == set(), "a package that declares no licence"
    copyleft = {n: text for n, text in found.items() if COPYLEFT.search(text)}
    assert copyleft.items() <= ACCEPTED.items()
