"""What is shipped: every sub-package listed, every room type-checked, a wheel that works in a fresh environment."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "export", "trainer", "benchmarks")


def test_every_room_is_type_checked_and_imports_absolutely() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert set(tool["mypy"]["packages"]) == {f"infercam.{room}" for room in ROOMS}
    assert "TID252" in tool["ruff"]["lint"]["select"]
    assert tool["ruff"]["lint"]["flake8-tidy-imports"] == {"ban-relative-imports": "all"}
    assert "infercam" in tool["ruff"]["lint"]["isort"]["known-first-party"]


def _packages_on_disk() -> set[str]:
    found = (p.parent.relative_to(ROOT) for room in ROOMS for p in (ROOT / room).rglob("__init__.py"))
    return {"infercam." + ".".join(p.parts) for p in found}


def test_every_package_and_folder_of_data_is_listed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = {name for name, files in tool["package-data"].items() if files == ["*"]}
    assert set(tool["packages"]) == _packages_on_disk() | data
    assert tool["package-dir"] == {f"infercam.{room}": room for room in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_importing_from_the_repository_root_is_refused(room: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"import infercam.{room}" in run.stderr


GOLDEN_MAP = """
import sys
import numpy as np
from importlib.resources import files
from infercam.engine import Engine
from infercam.engine.demo.scenes import scene

want = np.load(sys.argv[1])
one = scene(int(want["seed"]))
assert one.classes == want["classes"].tolist(), (one.classes, want["classes"])
with Engine.load(str(files("infercam.engine.demo") / "bundle")) as engine:
    got = engine.maps(one.image, one.classes, recipe="released")
assert "torch" not in sys.modules and "onnx" not in sys.modules
print("largest difference", np.abs(got - want["maps"].astype(np.float32)).max())
np.testing.assert_allclose(got, want["maps"].astype(np.float32), atol=2e-3)
"""


def test_the_wheel_works_in_a_fresh_environment(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert "infercam/engine/demo/bundle/response.onnx" in inside
    assert "infercam/engine/report/page/report.html" in inside
    assert "infercam/engine/serve/page/index.html" in inside
    assert not [
        n for n in inside if n.startswith(("engine/", "tests/")) or "mypy_path" in n or "robustness" in n
    ]

    home = tmp_path / "fresh"
    venv.create(home)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    subprocess.run([*pip, f"{wheel}[cpu]"], check=True, capture_output=True)

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    helped = run(home / "bin" / "infercam", "--help")
    assert all(command in helped for command in ("export", "run", "eval", "convert", "demo"))
    golden = ROOT / "tests" / "golden_scene.npz"
    assert "largest difference" in run(python, "-c", GOLDEN_MAP, golden)
