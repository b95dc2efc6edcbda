"""The server under load on loopback, against `infercam run` on the same images in the same run.

    python -m infercam.benchmarks.scale.load BUNDLE --images DIR --labels LABELS [--clients 8] [--seconds 60]

The server is a process; the clients are threads of this one, each with a connection that it keeps. They upload the
files as they are, with their classes, and take maps as npz (the map store's file, as `infercam run` writes it), so
that both sides do the same work: read, decode, infer, compress. The clients' own work is on the same cores. Answers
are kept and compared with the run's maps afterwards. Then the server is overloaded, and stopped in mid-work.

Writes results/load.json; exit code 1 where an answer was lost, mixed up or wrong.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from infercam.benchmarks.common import write_result
from infercam.engine.bundle import Bundle
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import Item, folder_source

console = Console(stderr=True, highlight=False)
WARM_UP = 5.0
"""Seconds of load that do not count."""
PATIENCE = 120.0
Levels = NDArray[np.uint8]


def main(
    bundle: Annotated[Path, typer.Argument(help="the bundle to serve")],
    images: Annotated[Path, typer.Option(help="folder of pictures")],
    labels: Annotated[str, typer.Option(help="label file")],
    clients: Annotated[int, typer.Option(min=1, help="at once")] = 8,
    seconds: Annotated[float, typer.Option(min=1, help="of steady load")] = 60,
    limit: Annotated[int, typer.Option(min=1, help="first so many pictures")] = 48,
    recipe: Annotated[str, typer.Option()] = "fast",
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "load",
) -> None:
    """Measure, print, write results/NAME.json."""
    requests = _requests(bundle, images, labels, limit, recipe)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work = _Work(bundle, images, labels, limit, recipe)
        before = work.offline(folder / "before")
        console.print(f"offline: {before.rate:.2f} images/s")
        want = {r.id: _levels((folder / "before" / f"{r.id}.npz").read_bytes())[1] for r in requests}
        with _Server(bundle, recipe) as server:
            steady = _steady(server, requests, clients, seconds)
            console.print(f"served: {steady.rate:.2f} images/s, {len(steady.answers)} answers")
            overload = _overload(server, requests)
            drained = _drained(server, requests, clients)
        after = work.offline(folder / "after")
        console.print(f"offline: {after.rate:.2f} images/s")
    offline = statistics.mean([before.rate, after.rate])
    report = {
        "recipe": recipe,
        "images": len(requests),
        "clients": clients,
        "answers_as": "npz (the map store's file), connections kept, files uploaded as they are",
        "offline_images_per_second": [round(before.rate, 3), round(after.rate, 3)],
        "offline_cpu_seconds_per_image": [round(before.cpu, 3), round(after.cpu, 3)],
        "steady": steady.report() | {"share_of_offline": round(steady.rate / offline, 3)},
        "overload": overload.report(),
        "drain": drained,
        "agreement": _agreement([*steady.answers, *overload.answers], want),
    }
    print(json.dumps(report, indent=1))
    console.print(f"-> {write_result(name, report)}")
    raise typer.Exit(_losses(report) > 0)


def _losses(report: dict[str, Any]) -> int:
    """Whatever must not be: answers that are missing, another image's, or other maps than the run's."""
    agreement, drain = report["agreement"], report["drain"]
    lost = sum(report[part]["failed"] for part in ("steady", "overload")) + drain["lost"]
    return int(lost + agreement["mixed_up"] + agreement["wrong"] + abs(drain["exit_code"]))


# -- the two sides ---------------------------------------------------------------------------------------------
class _Offline(NamedTuple):
    """`infercam run`'s speed."""

    rate: float
    """Images a second, start-up not included."""
    cpu: float
    """CPU seconds an image, start-up included."""


@dataclass(frozen=True)
class _Work:
    """The same images, classes and recipe as the clients', through `infercam run`."""

    bundle: Path
    images: Path
    labels: str
    limit: int
    recipe: str

    def offline(self, out: Path) -> _Offline:
        """Run it once."""
        report = out.with_suffix(".json")
        command = [sys.executable, "-m", "infercam.engine.cli", "run", str(self.bundle), "-o", str(out)]
        command += ["--images", str(self.images), "--labels", self.labels, "--limit", str(self.limit)]
        command += ["--recipe", self.recipe, "--json", str(report)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        summary = json.loads(report.read_text(encoding="utf-8"))
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return _Offline(summary["images_per_second"], spent / summary["done"])


class _Server:
    """`infercam serve` as a process on a free port."""

    def __init__(self, bundle: Path, recipe: str) -> None:
        command = [sys.executable, "-m", "infercam.engine.cli", "serve", str(bundle), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--recipe", recipe, "--timeout", str(PATIENCE)], stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("serving at "):
                break
        else:
            raise SystemExit("the server does not start:\n" + "".join(self.lines))
        url = urlsplit(self.lines[-1].split()[-1])
        assert url.hostname and url.port
        self.host, self.port = url.hostname, url.port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)

    def memory(self) -> float:
        """Resident megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def cpu(self) -> float:
        """CPU seconds it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def queued(self) -> float:
        """Requests that it has accepted and not answered."""
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(re.findall(r"^infercam_queue_depth (\S+)", text, re.MULTILINE)[0])

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


# -- the clients -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Request:
    id: str
    file: Path
    query: str


@dataclass(frozen=True)
class _Answer:
    """`status` 0: none came."""

    id: str
    status: int
    body: bytes
    began: float
    ended: float


@dataclass
class _Load:
    """What the clients saw."""

    answers: list[_Answer]
    began: float
    ended: float
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the beginning, resident MB of the server)."""
    cpu: float = 0.0
    """Seconds that the server computed for all answers; 0: not measured."""

    @property
    def good(self) -> list[_Answer]:
        """Answered with maps within the time that counts."""
        return [a for a in self.answers if a.status == 200 and self.began <= a.ended <= self.ended]

    @property
    def rate(self) -> float:
        return len(self.good) / (self.ended - self.began)

    def report(self) -> dict[str, Any]:
        statuses = Counter(a.status for a in self.answers)
        out: dict[str, Any] = {
            "requests": len(self.answers),
            "answered": statuses[200],
            "refused_429": statuses[429],
            "failed": len(self.answers) - statuses[200] - statuses[429],
        }
        if self.good:
            taken = [a.ended - a.began for a in self.good]
            out["images_per_second"] = round(self.rate, 3)
            if self.cpu:
                out["server_cpu_seconds_per_image"] = round(self.cpu / statuses[200], 3)
            out["latency_p50"], out["latency_p99"] = (
                round(float(np.percentile(taken, p)), 3) for p in (50, 99)
            )
        return out | _slope(self.memory)


def _slope(memory: list[tuple[float, float]]) -> dict[str, Any]:
    """The server's memory after the warm-up: megabytes, and how many more each minute."""
    if sum(at >= 0 for at, _ in memory) < 4:
        return {}
    at, used = np.array([sample for sample in memory if sample[0] >= 0]).T
    slope = float(np.polyfit(at, used, 1)[0]) * 60
    return {
        "memory_mb_median_by_quarter": [round(float(np.median(part)), 1) for part in np.array_split(used, 4)],
        "memory_mb_most": round(float(used.max()), 1),
        "memory_mb_per_minute": round(slope, 2),
    }


def _requests(bundle: Path, images: Path, labels: str, limit: int, recipe: str) -> list[_Request]:
    table = load_labels(labels, Bundle.load(bundle).manifest.classes)
    items: list[Item] = list(folder_source(images)[:limit])

    def query(item: Item) -> str:
        classes = ",".join(map(str, table.lookup(item.id)))
        return urlencode({"id": item.id, "classes": classes, "recipe": recipe, "format": "npz"})

    return [_Request(item.id, Path(item.path), query(item)) for item in items]


def _ask(connection: http.client.HTTPConnection, request: _Request) -> _Answer:
    began = time.perf_counter()
    status, body = 0, b""
    try:
        connection.request("POST", f"/maps?{request.query}", request.file.read_bytes())
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
    return _Answer(request.id, status, body, began, time.perf_counter())


def _together(count: int, client: Callable[[int], list[_Answer]]) -> list[_Answer]:
    """All clients' answers, each on a thread of its own."""
    answers: list[_Answer] = []

    def run(n: int) -> None:
        answers.extend(client(n))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _steady(server: _Server, requests: list[_Request], clients: int, seconds: float) -> _Load:
    """Each client asks for one image after the other, from its own place in the list on."""
    began = time.perf_counter() + WARM_UP
    load = _Load([], began, began + seconds)

    def client(n: int) -> list[_Answer]:
        connection, out, at = server.connect(), [], n * len(requests) // clients
        while time.perf_counter() < load.ended:
            out.append(_ask(connection, requests[at % len(requests)]))
            at += 1
        connection.close()
        return out

    before = server.cpu()
    with _sampled(server, load):
        load.answers = _together(clients, client)
    load.cpu = server.cpu() - before
    return load


@contextmanager
def _sampled(server: _Server, load: _Load) -> Iterator[None]:
    """Look at the server's memory once a second."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(1):
            load.memory.append((time.perf_counter() - load.began, server.memory()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _overload(server: _Server, requests: list[_Request], clients: int = 160) -> _Load:
    """Far more at once than the server's queue takes."""
    began = time.perf_counter()

    def client(n: int) -> list[_Answer]:
        connection = server.connect()
        out = [_ask(connection, requests[n % len(requests)])]
        connection.close()
        return out

    answers = _together(clients, client)
    return _Load(answers, began, time.perf_counter())


def _drained(server: _Server, requests: list[_Request], clients: int) -> dict[str, Any]:
    """SIGTERM while all clients wait: what the server had accepted it answers, and exits with 0."""

    def client(n: int) -> list[_Answer]:
        return [_ask(server.connect(), requests[n % len(requests)])]

    answers: list[_Answer] = []
    asking = threading.Thread(target=lambda: answers.extend(_together(clients, client)))
    asking.start()
    while server.queued() < clients and asking.is_alive():
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    began = time.perf_counter()
    assert server.process.stderr is not None
    lines = server.process.stderr.read().splitlines()
    code = server.process.wait()
    asking.join()
    accepted, answered, gone, dropped = map(int, re.findall(r"\d+", lines[-1]))
    return {
        "in_flight_at_sigterm": int(re.findall(r"\d+", lines[-2])[0]),
        "answered": sum(a.status == 200 for a in answers),
        "lost": accepted - answered - gone + dropped + sum(a.status != 200 for a in answers),
        "exit_code": code,
        "seconds": round(time.perf_counter() - began, 2),
    }


# -- are the answers right? ------------------------------------------------------------------------------------
def _levels(data: bytes) -> tuple[str, Levels]:
    """Id and maps of an npz answer."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        delta = archive["delta"]
        name = json.loads(archive["meta.json"])["id"]
    return name, delta.cumsum(1, dtype=np.uint8).cumsum(2, dtype=np.uint8)


def _agreement(answers: list[_Answer], want: dict[str, Levels]) -> dict[str, Any]:
    """Each answer against the run's maps of the image that was asked for. Batches differ, and with them the
    network's last bits: a pixel at the erasing threshold may fall on the other side."""
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for answer in answers:
        if answer.status == 200:
            bodies[answer.id].add(answer.body)
    mixed = wrong = compared = 0
    worst = 0.0
    for asked, distinct in bodies.items():
        for body in distinct:
            compared += 1
            name, levels = _levels(body)
            if name != asked or levels.shape != want[asked].shape:
                mixed += 1
                continue
            difference = np.abs(levels.astype(np.int16) - want[asked])
            if difference.size:  # an image may have no classes
                worst = max(worst, float(difference.mean()))
                wrong += float((difference > 1).mean()) > 0.01
    return {
        "distinct_answers": compared,
        "mixed_up": mixed,
        "wrong": wrong,
        "wrong_means": "over 1 % of pixels off by more than 1/255",
        "largest_mean_difference": round(worst / 255, 6),
    }


if __name__ == "__main__":
    typer.run(main)
