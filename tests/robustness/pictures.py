"""Corrupt pictures among good ones: each by itself under a limit of time and memory, then all in one run."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from infercam.engine.data.sources import folder_source
from infercam.engine.store.failures import FAILURES
from tests.robustness.bad_pictures import write_bad_pictures
from tests.robustness.outcome import Outcome, Say, Size
from tests.robustness.rig import CLASS_NAMES, Rig, finish
from tests.robustness.victim import Victim

SECONDS = 10.0
PEAK_MB = 400.0
"""Of one picture of at most 4 MP: its pixels several times over."""
GOOD = 60


def corrupt_pictures(rig: Rig, size: Size, say: Say) -> Outcome:
    outcome = Outcome("corrupt pictures among good ones", rounds=1, inputs=size.images)
    good = sorted(rig.images.iterdir())[:GOOD]
    folder = rig.folder / "mixed"
    names = write_bad_pictures(folder, size.images, good, rig.rng)
    verdicts = _each_alone(rig, outcome, [folder / name for name in names], say)
    for file in good:
        (folder / file.name).symlink_to(file)
    done = _run(rig, folder)
    _check(rig, outcome, folder, good, done)
    outcome.figures |= {"by itself": dict(verdicts), "good ones": len(good)}
    return outcome


def _each_alone(rig: Rig, outcome: Outcome, files: list[Path], say: Say) -> Counter[str]:
    verdicts: Counter[str] = Counter()
    slowest = highest = 0.0
    with Victim(rig.folder / "victim.log") as victim:
        for number, file in enumerate(files):
            verdict = victim.ask("image", SECONDS * 3, path=str(file))
            verdicts[verdict.kind] += 1
            slowest, highest = max(slowest, verdict.seconds), max(highest, verdict.peak_mb)
            if verdict.kind not in ("accepted", "refused"):
                outcome.lose(f"{file.name}: {verdict.kind}: {verdict.text}")
            elif verdict.seconds > SECONDS or verdict.peak_mb > PEAK_MB:
                outcome.lose(f"{file.name}: {verdict.seconds:.1f} s, {verdict.peak_mb:.0f} MB")
            say(f"corrupt pictures: {number + 1} of {len(files)}")
    outcome.figures = {"slowest_seconds": round(slowest, 2), "highest_mb": round(highest)}
    return verdicts


def _run(rig: Rig, folder: Path) -> tuple[int, str, Path]:
    """One run over all of them."""
    labels = rig.folder / "mixed.json"
    known = json.loads(rig.labels.read_text())
    labels.write_text(json.dumps({i.id: known.get(i.id, [CLASS_NAMES[0]]) for i in folder_source(folder)}))
    out = rig.folder / "mixed-maps"
    command = rig.command(out, images=folder)
    command[command.index(str(rig.labels))] = str(labels)
    done = finish(command)
    return done.code, done.err, out


def _check(rig: Rig, outcome: Outcome, folder: Path, good: list[Path], done: tuple[int, str, Path]) -> None:
    """Good ones as an undisturbed run has them; every other image done, or one line in the failures."""
    code, err, out = done
    if code != 1 or "Traceback" in err:
        outcome.lose(f"the run over all ended with {code}: {err[-300:]}")
        return
    lines = [json.loads(line) for line in (out / FAILURES).read_text().splitlines()]
    failed = Counter(line["id"] for line in lines)
    images = {item.id for item in folder_source(folder)}
    made = {f.relative_to(out).as_posix().removesuffix(".npz") for f in out.rglob("*.npz")}
    for id in sorted(images):
        if (id in made) + failed[id] != 1:
            outcome.lose(f"{id}: {'made' if id in made else 'not made'}, {failed[id]} lines in the failures")
    for line in lines:
        if "\n" in line["reason"] or "Traceback" in line["reason"]:
            outcome.lose(f"{line['id']}: {line['reason']}")
    reference = rig.reference[0]
    for file in good:
        name = f"{file.stem}.npz"
        if not (out / name).exists() or content(out / name) != content(reference / name):
            outcome.lose(f"{name}: other maps than without the bad ones")
    outcome.figures["in the run"] = {"done": len(made), "failed": len(failed)}


def content(file: Path) -> tuple[str, dict[str, Any]]:
    """What a map file holds, but for the run's settings (they name the folder and count its images)."""
    with zipfile.ZipFile(file) as archive:
        meta = json.loads(archive.read("meta.json"))
        return hashlib.sha256(archive.read("delta.npy")).hexdigest(), {**meta, "settings": None}
