"""Where the images come from: a folder, a list, or a VOC tree; a folder or a list's root may be behind a URI.

A source is a sequence of `Item`s held as one short string each (a million images are about 100 MB at
most), so it can be counted, iterated again, and indexed; nothing is opened until an image is read. An
item's id names it in labels and output: the path below the root without suffix, '/' between folders.

What is wrong with the source as a whole (a missing folder, two images of one id, a line that leaves the
root) is one InputError before any work; what is wrong with one file is found when that file is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, overload

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import check_folder, check_id, existing, is_file, os_reason, read_text
from infercam.engine.data import voc
from infercam.engine.data.images import (
    DEFAULT_MAX_PIXELS,
    RGB,
    SUFFIXES,
    decode_image,
    read_image,
    without_suffix,
)
from infercam.engine.data.label_columns import id_rank, label_rank
from infercam.engine.data.list_lines import cells, split_line
from infercam.engine.data.storage import Storage, is_uri, open_storage


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its id, its file (of a remote source: below its place), and, if the source names one, its
    ground-truth mask (maybe missing)."""

    id: str
    path: Path
    mask: Path | None = None


class Source(Sequence[Item]):
    """Images in a fixed order, each id once; see `folder_source`, `list_source`, `voc_source`."""

    def __init__(
        self,
        kind: str,
        root: Path,
        entries: list[str],
        item: Callable[[str], Item],
        *,
        split: str | None = None,
        notes: Sequence[str] = (),
        place: Storage | None = None,
    ) -> None:
        self.kind = kind
        self.root = root
        self.place = place
        """Where the images are, if not on this machine."""
        self.split = split
        self.notes = list(notes)
        """Lines worth telling the user, for example how many repeated lines were left out."""
        self._entries = entries
        self._item = item

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, self._entries)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Source: ...
    def __getitem__(self, at: int | slice) -> Item | Source:
        if isinstance(at, int):
            return self._item(self._entries[at])
        part = self._entries[at]
        return Source(
            self.kind, self.root, part, self._item, split=self.split, notes=self.notes, place=self.place
        )

    def ends(self) -> list[str]:
        """Where some of its images are: the first and the last file, or the URI that all are below."""
        if self.place is not None:
            return [str(self.place)]
        return [str(self[at].path) for at in (0, len(self) - 1)] if len(self) else []

    def describe(self) -> dict[str, Any]:
        """What outputs record: kind, root, split (or list file, or None) and the number of images."""
        split = self.split and shown(self.split)
        root = shown(self.place or self.root)
        return {"kind": self.kind, "root": root, "split": split, "count": len(self)}


def read_pixels(place: Storage | None, path: str | Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> RGB:
    """The picture of an item of a source that is at `place`; as images.read_image. Raises InputError."""
    if place is None:
        return read_image(path, max_pixels)
    name = path if isinstance(path, str) else path.as_posix()
    try:
        data = place.read(name)
    except OSError as e:
        raise InputError(f"{shown(place.where(name))}: {os_reason(e)}") from None
    return decode_image(data, place.where(name), max_pixels)


def folder_source(root: str | os.PathLike[str], recursive: bool = True) -> Source:
    """Every picture below `root`, a folder or its URI, sorted by path; links to folders are followed.

    Hidden files and folders and files of other suffixes are passed over (`notes` counts the latter). Bytes of
    a name that are not UTF-8 stand in its id as %xx, because ids are written into JSON.
    Raises InputError for a folder that is missing, unreadable, or holds no picture, and where two files
    differ only in suffix: both would have one id, so labels and output could not tell them apart.
    """
    place = open_storage(root) if is_uri(root) else None
    top = Path(root)
    if place is None:
        check_folder(top)
    names: list[str] = []
    others = 0
    for name in _walk(top, recursive) if place is None else _listed(place):
        if without_suffix(name) != name:
            names.append(name)
        else:
            others += 1
    if not names:
        beside = f" ({others} other files; read are {' '.join(sorted(SUFFIXES))})" if others else ""
        raise InputError(f"{shown(place or top)}: no images in it{beside}")
    names.sort()
    _refuse_shared_ids(place or top, names)
    notes = [f"{shown(place or top)}: {others} files that are no pictures passed over"] if others else []
    base = top if place is None else Path()
    return Source(
        "folder", top, names, lambda name: Item(_folder_id(name), base / name), notes=notes, place=place
    )


def list_source(file: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Source:
    """The images that a text file names, in its order. `root` may be a URI: names then have their suffix.

    A line is a path, an id (a path without suffix), 'IMAGE MASK' as in psa's lists, or 'IMAGE LABEL' or
    'IMAGE,LABEL' as in ImageNet's (labels are for `--labels`; a note says so); blank lines, lines that start with #
    and a header over such lines are skipped. What is in quotes is taken without them, a backslash is a `/`. Paths are
    relative to `root`, or without one to the list's own folder; `/JPEGImages/…` is relative to the VOC tree there,
    and JPEGImages/ is no part of the id. Other absolute paths have the path below `root` as their id, or where they
    are elsewhere the file's name.
    A repeated line counts once (`notes` says how many).

    Raises InputError, with the line's number, where a path leaves the root or two files share an id.
    """
    if root is not None and is_uri(root):
        return _remote_list(Path(file), open_storage(root))
    listing = Path(file)
    lines = _lines(listing)
    base = listing.parent if root is None else Path(root)
    check_folder(base, f" (the root of {shown(listing)})")
    if any(_in_voc(_columns(line)[0]) for _, line in lines):
        base = _voc_base(base, listing)
    entries = _unique(lines, listing, base)
    notes = _list_notes(listing, lines, entries)
    return Source("list", base, entries, _ListedItem(base), split=str(listing), notes=notes)


def _lines(listing: Path) -> list[tuple[int, str]]:
    """The lines that name images, with their numbers; raises InputError where there are none."""
    lines = [(n, line) for n, raw in enumerate(read_text(listing).split("\n"), 1) if (line := _content(raw))]
    second = split_line(lines[1][1]) if len(lines) > 1 else None
    if second is not None and second.rest and _is_table_head(lines[0][1]):
        lines = lines[1:]
    if not lines:
        raise InputError(f"{shown(listing)}: names no images")
    return lines


def _is_table_head(line: str) -> bool:
    """Whether a list is a table of images and labels whose first line names the columns."""
    names = [cell.strip("'\" ") for cell in re.split(r"[,;\s]", line)]
    picture = without_suffix(names[0]) != names[0]
    return not picture and id_rank(names[0]) > 0 and any(map(label_rank, names[1:]))


def _list_notes(listing: Path, lines: list[tuple[int, str]], entries: list[str]) -> list[str]:
    notes = []
    if len(entries) < len(lines):
        notes.append(f"{shown(listing)}: {len(lines) - len(entries)} repeated lines left out")
    split = [(split_line(line), line) for line in entries]
    labelled = sum(one is not None and bool(one.rest) and _columns(line)[1] is None for one, line in split)
    if labelled:
        notes.append(f"{shown(listing)}: {labelled} lines hold labels; --labels {shown(listing)} uses them")
    return notes


def _remote_list(listing: Path, place: Storage) -> Source:
    lines = _lines(listing)
    base = Path("/")  # absolute paths in the list are those below the URI
    entries = _unique(lines, listing, base)
    for line in entries:
        name = _read_line(line, base).image
        if without_suffix(name) == name:
            raise InputError(
                f"{shown(listing)}: {shown(name)}: below a URI an image is named with its suffix"
            )
    notes = _list_notes(listing, lines, entries)

    def item(line: str) -> Item:
        named = _read_line(line, base)
        return Item(named.id, Path(named.image))

    return Source("list", base, entries, item, split=str(listing), notes=notes, place=place)


def voc_source(root: str | os.PathLike[str], split: str) -> Source:
    """A split of a VOC tree: JPEGImages/ID.jpg for every id of ImageSets/Segmentation/SPLIT.txt (or Main).

    In Main's lists per class ('cat_train': an id and 1, 0 or -1 a line) the images marked -1 are left out.
    Raises InputError for a folder that is no VOC tree and for an unknown split (naming those there are).
    """
    base = voc.find_root(root)
    listing = voc.split_file(base, split)
    ids: dict[str, None] = {}
    for number, raw in enumerate(read_text(listing).split("\n"), 1):
        words = raw.split()
        if not words or words[1:] == ["-1"]:
            continue
        try:
            ids[check_id(words[0])] = None
        except InputError as e:
            raise InputError(f"{shown(listing)}, line {number}: {e}") from None
    if not ids:
        raise InputError(f"{shown(listing)}: names no images")
    return Source(
        "voc",
        base,
        list(ids),
        lambda i: Item(i, voc.image_path(base, i), voc.mask_path(base, i)),
        split=split,
    )


def _listed(place: Storage) -> Iterator[str]:
    """Names of the files of a remote folder and below, without hidden ones."""
    try:
        for name, _ in place.files():
            if not any(part.startswith(".") for part in name.split("/")):
                yield name
    except OSError as e:
        raise InputError(f"{shown(place)}: {os_reason(e)}") from None


def _walk(top: Path, recursive: bool) -> Iterator[str]:
    """Paths of files relative to `top` with '/', unsorted; a folder reached twice by links is read once."""
    seen: set[tuple[int, int]] = set()
    todo = [""]
    while todo:
        folder = todo.pop()
        try:
            status = (top / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(top / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not _is_folder(entry):
                        yield folder + entry.name
                    elif recursive:
                        todo.append(f"{folder}{entry.name}/")
        except OSError as e:  # not skipped: its images would be missing from the result unsaid
            raise InputError(f"{shown(top / folder)}: {os_reason(e)}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed: whatever it is, reading it will say
        return False


def _folder_id(name: str) -> str:
    item_id = without_suffix(name)
    if item_id.isascii():
        return item_id
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02x}", item_id)


def _refuse_shared_ids(top: Path | Storage, names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_folder_id(name), name)
        if other != name:
            raise InputError(
                f"{shown(top)}: {shown(other)} and {shown(name)} have one id, {shown(_folder_id(name))}; "
                "remove one of them, or name the images to use in a list"
            )


def _content(line: str) -> str:
    line = line.strip()
    return "" if line.startswith("#") else line


def _columns(line: str) -> tuple[str, str | None]:
    """(image, mask or None) of a line of a list; what stands behind an image and is no picture is its label."""
    pair = split_line(line)
    image, _, other = line.partition("\t") if pair is None else (pair.image, "", pair.rest)
    mask = "".join(cells(other)[:1]).replace("\\", "/")
    return image.strip().replace("\\", "/"), mask if without_suffix(mask) != mask else None


def _in_voc(image: str) -> bool:
    """Whether the path is written from a VOC root, as psa ('/JPEGImages/…') and others ('JPEGImages/…') do."""
    return image.lstrip("/").startswith(f"{voc.IMAGES}/")


def _voc_base(base: Path, listing: Path) -> Path:
    try:
        return voc.find_root(base)
    except InputError:
        raise InputError(
            f"{shown(listing)}: its paths start at a VOC root, and {shown(base)} is none (no {voc.IMAGES}); "
            "name the VOC root with --root"
        ) from None


class _Named(NamedTuple):
    id: str
    image: str  # below the base, or absolute
    mask: str | None


def _read_line(line: str, base: Path) -> _Named:
    """Id and paths of a line, by its text alone; raises InputError where a path leaves the base."""
    image, mask = _columns(line)
    if _in_voc(image):
        image = check_id(image.lstrip("/"))
        mask = mask and mask.lstrip("/")
        return _Named(without_suffix(image.removeprefix(f"{voc.IMAGES}/")), image, mask)
    if not image.startswith("/"):
        image = check_id(image)
        return _Named(without_suffix(image), image, mask)
    path = PurePosixPath(image)
    below = PurePosixPath(base.absolute().as_posix())
    if path.is_relative_to(below):
        image = check_id(path.relative_to(below).as_posix())
        return _Named(without_suffix(image), image, mask)
    return _Named(without_suffix(check_id(path.name or "/")), image, mask)


def _unique(lines: list[tuple[int, str]], listing: Path, base: Path) -> list[str]:
    """The lines without repetitions of an id; two files of one id are refused."""
    first: dict[str, tuple[int, str]] = {}
    for number, line in lines:
        try:
            named = _read_line(line, base)
        except InputError as e:
            raise InputError(f"{shown(listing)}, line {number}: {e}") from None
        earlier, known = first.setdefault(named.id, (number, line))
        if known != line and _read_line(known, base).image != named.image:
            raise InputError(
                f"{shown(listing)}, lines {earlier} and {number}: two files of one id, {shown(named.id)}; "
                "keep one, or write their paths relative to a folder that they share (--root)"
            )
    return [line for _, line in first.values()]


class _ListedItem:
    """From a line of a list to its item; only bare ids touch the disk, to find their suffix."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def __call__(self, line: str) -> Item:
        named = _read_line(line, self.base)
        path = self.base / named.image
        if path.suffix.lower() not in SUFFIXES:
            path = self._find(named.image)
        return Item(named.id, path, None if named.mask is None else self.base / named.mask)

    def _find(self, item_id: str) -> Path:
        """The file of an id: in the base or its JPEGImages, .jpg first; a missing one is named as .jpg."""
        folders = [self.base, self.base / voc.IMAGES]
        for suffix in [".jpg", *sorted(SUFFIXES - {".jpg"})]:
            for folder in folders:
                file = folder / f"{item_id}{suffix}"
                file = file if item_id.isascii() else existing(file)
                if is_file(file):
                    return file
        return folders[0] / f"{item_id}.jpg"
