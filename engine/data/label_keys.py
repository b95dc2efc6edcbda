"""Which entry of a label file is an image's: ids and paths as people write them, on any system, from any folder."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

from infercam.engine.data.images import without_suffix

_VOC = re.compile(r"(\d{4})_(\d{6})")
_PLAIN = re.compile(r"[^/\\.][^/\\]*(?:/[^/\\.][^/\\]*)*")


def one_form(text: str) -> str:
    """Text in Unicode's composed form (NFC): Macs write the letters of file names and their accents apart."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain_key(name: str) -> str:
    r"""The key of a picture's path, its suffix away, however written: './a/b.jpg', 'a\b.jpg', '/x/../a//b'."""
    name = one_form(name)
    if not _PLAIN.fullmatch(name):
        name = "/".join(_parts(name.replace("\\", "/"))) or name
    return without_suffix(name)


def _parts(path: str) -> list[str]:
    """The folders and name of a path; what leaves its start is cut off."""
    found: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return found


class KeyIndex:
    """Finds keys by the tail of a path.

    root: the folder that ids are below, as a path: it decides between keys that hold the whole id.
    """

    def __init__(self, keys: Collection[str], root: str | None = None) -> None:
        self._keys = keys
        self._root = _parts(one_form(root or "").replace("\\", "/"))
        self._owners: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyIndex, (self._keys, "/".join(self._root))  # without what can be made again

    def find(self, item_id: str) -> list[str]:
        """The keys that may be the image's: one if it is clear, several if it is not.

        The id itself; else of the keys that end the image's path, or that the id ends, those that have most of it.
        """
        item_id = one_form(item_id)
        if item_id in self._keys:
            return [item_id]
        own = item_id.split("/")
        path = [*self._root, *own]
        best = 0
        found: list[str] = []
        for key in self._by_last_part.get(own[-1], ()):
            parts = key.split("/")
            common = _common_tail(parts, path)
            if common < best or common < min(len(parts), len(own)):  # folders that disagree: another image
                continue
            found = [*found, key] if common == best else [key]
            best = common
        return found

    def other_owner(self, key: str, item_id: str) -> str | None:
        """Another image that this key was found for, by its name alone; None where there is none yet.

        'a/1' and 'b/1' are two images, and the key '1' can be one's at most.
        """
        if key == one_form(item_id):
            return None
        other = self._owners.setdefault(key, item_id)
        one, two = item_id.split("/"), other.split("/")
        return None if _common_tail(one, two) == min(len(one), len(two)) else other

    @functools.cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        """Made when an id is looked for that is not there as it is."""
        found: dict[str, list[str]] = {}
        for key in self._keys:
            found.setdefault(key.rpartition("/")[2], []).append(key)
        return found


def _common_tail(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one != other:
            break
        count += 1
    return count


def voc_number(item_id: str) -> str | None:
    """irn and its kin write VOC's 2007_000032 as the number 2007000032; None for other ids."""
    folder, slash, last = item_id.rpartition("/")
    found = _VOC.fullmatch(last)
    return f"{folder}{slash}{found[1]}{found[2]}" if found else None
