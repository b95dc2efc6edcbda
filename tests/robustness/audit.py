"""Known vulnerabilities of what is installed, as far as the package index serves advisories."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.robustness.outcome import Outcome, Say, Size, Skipped
from tests.robustness.rig import Rig


def audit_dependencies(rig: Rig, size: Size, say: Say) -> Outcome:
    """pip-audit over this environment; a package that the index does not know counts as not audited."""
    beside = Path(sys.executable).parent / "pip-audit"
    tool = str(beside) if beside.exists() else shutil.which("pip-audit")
    if tool is None:
        raise Skipped("pip-audit is not installed")
    command = [tool, "--progress-spinner", "off", "--format", "json", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        raise Skipped("the package index serves no advisories here") from None
    outcome = Outcome("dependency audit", rounds=1)
    audited = [p for p in packages if "skip_reason" not in p]
    outcome.inputs = len(audited)
    outcome.figures = {"audited": len(audited), "not audited": len(packages) - len(audited)}
    if not audited:
        raise Skipped(f"the package index serves no advisories here ({len(packages)} packages, none audited)")
    for package in audited:
        for found in package.get("vulns", []):
            outcome.lose(f"{package['name']} {package['version']}: {found['id']}")
    return outcome
