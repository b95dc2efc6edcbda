"""The two Dockerfiles. No image is built here, for want of a Docker daemon: the files are parsed, linted and compared
with what they copy and install, and the CPU image's own steps are run, line by line, in a folder."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from importlib.metadata import distributions
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from infercam.engine.runners.plan import RUNTIMES

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "engine" / "serve" / "docker"
KINDS = ("cpu", "gpu")


class Step(NamedTuple):
    instruction: str
    value: str


def stages(kind: str) -> list[list[Step]]:
    """Instructions of each stage, its FROM first."""
    parse = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed (extra dev)")
    parser = parse.DockerfileParser(fileobj=io.BytesIO((DOCKER / f"Dockerfile.{kind}").read_bytes()))
    out: list[list[Step]] = []
    for entry in parser.structure:
        if entry["instruction"] == "FROM":
            out.append([])
        if entry["instruction"] != "COMMENT":
            out[-1].append(Step(entry["instruction"], entry["value"]))
    return out


def values(stage: list[Step], instruction: str) -> list[str]:
    return [s.value for s in stage if s.instruction == instruction]


def pins(kind: str) -> dict[str, str]:
    lines = (DOCKER / f"requirements-{kind}.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = version
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_that_runs(kind: str) -> None:
    build, final = stages(kind)
    assert build[0].value.endswith(" AS build")
    assert values(final, "USER") == ["10001"]
    assert values(final, "STOPSIGNAL") == ["SIGTERM"]
    assert values(final, "EXPOSE") == ["8080"]
    assert json.loads(values(final, "ENTRYPOINT")[0]) == ["infercam", "serve"]
    assert json.loads(values(final, "CMD")[0]) == ["/bundle", "--host", "0.0.0.0"]
    (check,) = values(final, "HEALTHCHECK")
    assert "http://127.0.0.1:8080/v2/health/ready" in check
    assert values(final, "COPY") == ["--from=build /opt/infercam /opt/infercam"]
    order = [s.instruction for s in final]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name in ("RUN", "COPY"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_compiler_reaches_the_image_that_runs(kind: str) -> None:
    _, final = stages(kind)
    text = " ".join(final[0].value.split() + values(final, "RUN"))
    assert not re.search(r"devel|g\+\+|gcc|build-essential|-dev\b|\bpip\b", text)


@pytest.mark.parametrize("kind", KINDS)
def test_base_images_have_a_version(kind: str) -> None:
    for stage in stages(kind):
        assert re.match(r"[\w/]+:\d+\.\d+[\w.-]+( AS build)?$", stage[0].value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_copied_is_there_and_not_ignored(kind: str) -> None:
    ignore = (DOCKER / f"Dockerfile.{kind}.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    build, _ = stages(kind)
    copied = [source for line in values(build, "COPY") for source in line.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in kept
        assert not any(fnmatch.fnmatch(source, p) for p in ignore if p[0] not in "!#*")
    assert kept == {source.split("/")[0] for source in copied}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-dir"
    ].values()
    assert {p.split("/")[0] for p in packages} <= kept


@pytest.mark.parametrize("kind", KINDS)
def test_the_pinned_versions_are_what_the_project_takes(kind: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(r) for r in (*project["dependencies"], *extras[kind], *extras["serve"])]
    have = pins(kind)
    if kind == "gpu":
        have |= pins("tensorrt")
        (rtx,) = map(Requirement, extras["rtx"])
        assert rtx.specifier.contains(pins("tensorrt-rtx")[rtx.name])
    for requirement in wanted:
        version = have[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
    assert not {"torch", "onnx"} & set(have), "the service runs without them"
    both = set(pins("cpu")) & set(pins("gpu"))
    assert {p: pins("cpu")[p] for p in both} == {p: pins("gpu")[p] for p in both}


def test_the_gpu_image_has_one_of_the_two_runtimes() -> None:
    """RUNTIME names the file of its pins, and the image's label says which it was."""
    build, final = stages("gpu")
    (name,) = set(values(build, "ARG") + values(final, "ARG"))
    assert name == "RUNTIME=tensorrt", "the default, in both stages"
    assert values(final, "LABEL") == ["infercam.runtime=${RUNTIME}"]
    assert any(
        '-r requirements-gpu.txt -r "requirements-${RUNTIME}.txt"' in run for run in values(build, "RUN")
    )
    copied = " ".join(values(build, "COPY")).split()
    for runtime in RUNTIMES:
        assert f"engine/serve/docker/requirements-{runtime}.txt" in copied
        assert len(pins(runtime)) == 1 and not set(pins(runtime)) & set(pins("gpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_linted(kind: str) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed (extra dev)")
    done = subprocess.run([linter, DOCKER / f"Dockerfile.{kind}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_options_of_the_command_exist() -> None:
    if find_spec("infercam.engine.commands.serve") is None:
        pytest.skip("no service")
    import inspect

    from infercam.engine.commands.serve import serve

    parameters = inspect.signature(serve).parameters
    assert {"bundles", "host", "queue"} <= set(parameters)
    assert parameters["port"].default == 8080, "EXPOSE and HEALTHCHECK say so"


# -- the CPU image's steps, without Docker ------------------------------------------------------------------------
class Folder:
    """Runs a Dockerfile's steps below a folder that stands for the image's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cwd = root
        self.env = {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin", "HOME": str(root / "tmp")}
        (root / "tmp").mkdir(parents=True)
        # What a registry's mirror needs is the machine's, not the image's.
        self.env |= {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "REQUESTS_"))}

    def inside(self, text: str) -> str:
        """Absolute paths of the image as paths of the folder."""
        return re.sub(r"(?<![\w.])/(opt/infercam|src|bundle)\b", lambda m: f"{self.root}/{m[1]}", text)

    def step(self, step: Step) -> None:
        if step.instruction == "WORKDIR":
            self.cwd = Path(self.inside(step.value))
            self.cwd.mkdir(parents=True)
        elif step.instruction == "COPY":
            self._copy(step.value.split())
        elif step.instruction == "RUN":
            done = subprocess.run(
                ["/bin/sh", "-c", self.inside(step.value)],
                cwd=self.cwd,
                env=self.env,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{step.value}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def _copy(self, words: list[str]) -> None:
        for source in words[:-1]:
            target = self.cwd / words[-1]
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__", "results")
                )
            else:
                shutil.copy(ROOT / source, target)

    def environment(self, assignments: str) -> dict[str, str]:
        """The environment that the image runs with, from its ENV."""
        own = {"PATH": self.env["PATH"], "HOME": self.env["HOME"]}
        for assignment in self.inside(assignments).split():
            name, value = assignment.split("=", 1)
            own[name] = value.replace("$PATH", own["PATH"])
        return own


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until_healthy(check: list[str], env: dict[str, str], server: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while subprocess.run(check, env=env, capture_output=True).returncode != 0:
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "never healthy"
        time.sleep(0.5)


def assert_answers(address: str) -> None:
    """The maps of a picture, and the page to try it."""
    from infercam.engine.demo.scenes import scene

    one = scene(1)
    encoded = io.BytesIO()
    Image.fromarray(one.image).save(encoded, "PNG")
    request = urllib.request.Request(f"{address}/maps", encoded.getvalue(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    assert (found["height"], found["width"]) == one.image.shape[:2]
    assert len(found["scores"]) == 8
    with urllib.request.urlopen(f"{address}/", timeout=10) as page:
        assert page.headers.get_content_type() == "text/html"


@pytest.mark.slow
def test_the_cpu_image_s_steps_end_in_a_healthy_service(tmp_path: Path) -> None:
    """Same pip lines, same pins, the final stage's environment, entry point, health check and stop signal."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the image's pins are for Python 3.11")
    build, final = stages("cpu")
    image = Folder(tmp_path / "image")
    for step in build[1:]:
        image.step(step)
    site = next((image.root / "opt/infercam/lib").glob("python*/site-packages"))
    installed = {canonicalize_name(d.name): d.version for d in distributions(path=[str(site)])}
    assert installed == pins("cpu") | {"infercam": installed["infercam"]}

    shutil.copytree(str(files("infercam.engine.demo") / "bundle"), image.root / "bundle")
    env = image.environment(" ".join(values(final, "ENV")))
    port = free_port()
    (check,) = values(final, "HEALTHCHECK")
    health = json.loads(check[check.index("[") :].replace(":8080", f":{port}"))
    health[0] = str(image.root / "opt/infercam/bin" / health[0])
    entry = json.loads(values(final, "ENTRYPOINT")[0]) + json.loads(image.inside(values(final, "CMD")[0]))
    entry[0] = str(image.root / "opt/infercam/bin" / entry[0])
    entry[entry.index("0.0.0.0")] = "127.0.0.1"
    assert subprocess.run(health, env=env, capture_output=True).returncode != 0
    before = set(site.rglob("*"))
    with subprocess.Popen([*entry, "--port", str(port)], env=env, cwd=image.root) as server:
        try:
            wait_until_healthy(health, env, server)
            assert_answers(f"http://127.0.0.1:{port}")
            server.send_signal(getattr(signal, values(final, "STOPSIGNAL")[0]))
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
    assert set(site.rglob("*")) == before, "a read-only file system would do"
