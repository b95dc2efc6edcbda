"""Disks that are full, read-only or closed to the user: one line, nothing half-written, and with room or rights
again the same command ends with the undisturbed run's bytes.

The disk is a small tmpfs in a mount namespace of its own, so that nothing stays mounted.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.robustness.outcome import Outcome, Say, Size, Skipped
from tests.robustness.rig import Rig, differences, environment, finish, one_error

PAGE = 4096  # what a tmpfs gives out: the size of the disk decides which file is the first without room
PLACES = ("store.json", "index.jsonl", "failures.jsonl", ".npz")


def full_disk(rig: Rig, size: Size, say: Say) -> Outcome:
    """Disks of 1, 2, 3, … pages (full in store.json, in a failure line, in the index), then of random sizes."""
    _can_mount(rig.folder)
    outcome = Outcome("full disk")
    images = _with_a_bad_one(rig)
    reference = rig.folder / "reference-bad"
    rig.run(reference, images=images)
    most = sum(-(-f.stat().st_size // PAGE) for f in reference.rglob("*") if f.is_file())
    small = list(range(1, 2 + max(3, size.rounds // 4)))
    pages = small + [int(n) for n in rig.rng.integers(small[-1], most, max(1, size.rounds - len(small)))]
    hit: dict[str, int] = {}
    for number, count in enumerate(pages):
        place = _fill(rig, outcome, reference, images, count)
        hit[place] = hit.get(place, 0) + 1
        say(f"full disk: {number + 1} of {len(pages)} ({count} pages: full at {place})")
    outcome.rounds = len(pages)
    outcome.figures = {"full at": hit, "pages": pages}
    return outcome


def _with_a_bad_one(rig: Rig) -> Path:
    """The rig's images behind one that cannot be read, so that failures.jsonl is written first."""
    folder = rig.folder / "images-bad"
    if not folder.exists():
        folder.mkdir()
        for file in rig.images.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "00000a.png").write_text("no picture\n")
    return folder


def _fill(rig: Rig, outcome: Outcome, reference: Path, images: Path, pages: int) -> str:
    """One run on a disk of so many pages, then with room; says which file found no room first."""
    disk, copy = rig.folder / "disk", rig.folder / "copy"
    disk.mkdir(exist_ok=True)
    shutil.rmtree(copy, ignore_errors=True)
    run = shlex.join(rig.command(disk / "out", images=images))
    full, room = rig.folder / "full.err", rig.folder / "room.err"
    done = _in_namespace(
        f"mount -t tmpfs -o size={pages * PAGE} tmpfs {disk}\n"
        f"{run} 2> {full} && exit 99\n"
        f"find {disk} -name '.tmp-*' > {rig.folder}/left\n"
        f"mount -o remount,size=256m {disk}\n"
        f"{run} 2> {room} || true\n"
        f"cp -r {disk}/out {copy}"
    )
    where = f"disk of {pages} pages"
    said = full.read_text(errors="replace")
    if done.returncode:
        outcome.lose(f"{where}: {done.returncode} {done.stderr[-200:]} {said[-200:]}")
        return "?"
    if (wrong := one_error(said)) is not None:
        outcome.lose(f"{where}: {wrong}")
    elif "disk full" not in said:
        outcome.lose(f"{where}: does not say that the disk is full: {said[-200:]}")
    if left := (rig.folder / "left").read_text():
        outcome.lose(f"{where}: temporary files stay: {left}")
    for difference in differences(reference, copy)[:5]:
        outcome.lose(f"{where}: {difference}")
    found = re.search(r"error: (\S+): disk full", said)
    name = found[1] if found else "?"
    return next((place for place in PLACES if name.endswith(place)), Path(name).name)


def closed_folders(rig: Rig, size: Size, say: Say) -> Outcome:
    """Output on a read-only disk, in the middle of a store; folders and files that the user may not touch."""
    outcome = Outcome("read-only output, unreadable input")
    checks = [_read_only, _no_rights_to_write, _no_rights_to_read, _one_unreadable]
    for check in checks:
        try:
            check(rig, outcome)
            outcome.rounds += 1
        except Skipped as e:
            outcome.figures[check.__name__.strip("_")] = f"skipped: {e}"
        say(f"{outcome.name}: {check.__name__.strip('_')}")
    if not outcome.rounds:
        outcome.skipped = "; ".join(map(str, outcome.figures.values()))
    return outcome


def _read_only(rig: Rig, outcome: Outcome) -> None:
    _can_mount(rig.folder)
    disk, copy = rig.folder / "disk", rig.folder / "copy"
    disk.mkdir(exist_ok=True)
    shutil.rmtree(copy, ignore_errors=True)
    run = shlex.join(rig.command(disk / "out"))
    error = rig.folder / "read-only.err"
    done = _in_namespace(
        f"mount -t tmpfs -o size=256m tmpfs {disk}\n"
        f"{run} 2>/dev/null\n"
        f"rm {disk}/out/0000*.npz\n"
        f"mount -o remount,ro {disk}\n"
        f"{run} 2> {error} && exit 99\n"
        f"mount -o remount,rw {disk}\n"
        f"{run} 2> {error}.again\n"
        f"cp -r {disk}/out {copy}"
    )
    said = error.read_text(errors="replace")
    if done.returncode:
        outcome.lose(f"read-only disk: {done.returncode} {done.stderr[-200:]} {said[-200:]}")
        return
    if (wrong := one_error(said)) is not None or "ead-only" not in said:
        outcome.lose(f"read-only disk: {wrong or said[-200:]}")
    for difference in differences(rig.reference[0], copy)[:5]:
        outcome.lose(f"read-only disk, then writable: {difference}")


def _no_rights_to_write(rig: Rig, outcome: Outcome) -> None:
    out = _fresh(rig.folder / "locked")
    out.chmod(0o555)
    _refused(rig.command(out / "maps"), "locked output", outcome)
    if any(out.iterdir()):
        outcome.lose("locked output: something was written all the same")


def _no_rights_to_read(rig: Rig, outcome: Outcome) -> None:
    images = _fresh(rig.folder / "unreadable")
    images.chmod(0)
    _refused(rig.command(rig.folder / "never", images=images), "unreadable input", outcome)


def _one_unreadable(rig: Rig, outcome: Outcome) -> None:
    """A single file without rights fails alone."""
    images, out = _fresh(rig.folder / "one-unreadable"), _fresh(rig.folder / "open")
    for i in range(6):
        shutil.copy(rig.images / f"{i:05d}.png", images)
    (images / "00003.png").chmod(0)
    done = finish(_without_privileges(rig.command(out, images=images)))
    made = len(list(out.glob("*.npz")))
    if done.code != 1 or "Traceback" in done.err or made != 5:
        outcome.lose(f"one unreadable file: exit {done.code}, {made} of 5 maps: {done.err[-200:]}")


def _refused(command: list[str], where: str, outcome: Outcome) -> None:
    done = finish(_without_privileges(command))
    words = ("ermission denied", "not readable")  # the second where the command line sees it first
    if done.code not in (1, 2) or "Traceback" in done.err or not any(word in done.err for word in words):
        outcome.lose(f"{where}: exit {done.code}: {done.err[-300:]}")


def _without_privileges(command: list[str]) -> list[str]:
    """The command as a user for whom the permission bits count: root without the right to pass over them."""
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        raise Skipped("needs setpriv (util-linux), for permissions do not bind root")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", *command]


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-rm", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
        check=False,
    )


def _can_mount(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    if shutil.which("unshare") is None or _in_namespace(f"mount -t tmpfs -o size=64k t {disk}").returncode:
        raise Skipped("mounting a small tmpfs is not permitted here")
