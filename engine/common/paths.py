"""Ids and paths as they are checked and shown: an id names an image, its labels and its output file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from infercam.engine.common.errors import InputError, shown


def os_reason(error: OSError) -> str:
    """Why the system refused, in words that fit after 'PATH: '."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return error.strerror.lower() if error.strerror else shown(error)


def check_folder(path: Path, hint: str = "") -> None:
    """Raise InputError, with the reason and `hint`, where `path` is no folder that can be looked into."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such folder{hint}") from None
    except (OSError, ValueError) as e:
        reason = os_reason(e) if isinstance(e, OSError) else str(e)
        raise InputError(f"{shown(path)}: {reason}{hint}") from None
    if not stat.S_ISDIR(mode):
        raise InputError(f"{shown(path)}: is not a folder{hint}")


def is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path's own raises where access is denied


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path's own raises where access is denied


def existing(path: Path, *suffixes: str) -> Path:
    """`path`, or, where that is not there, the file of its name with another suffix or in another Unicode form.

    Macs write the letters of names and their accents apart (NFD), lists and tables mostly together (NFC).
    """
    if os.path.lexists(path):
        return path
    for suffix in ("", *suffixes):
        other = path.with_suffix(suffix) if suffix else path
        for text in spellings(other.name):
            if os.path.lexists(found := other.with_name(text)):
                return found
        for text in spellings(os.fspath(other)):
            if os.path.lexists(text):
                return Path(text)
    return path


def spellings(text: str) -> list[str]:
    """Text in each Unicode form that file names have: itself first."""
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    return [text] if text.isascii() else list(dict.fromkeys([text, *(normalize(f, text) for f in forms)]))


def check_id(item_id: str) -> str:
    """Return `item_id` in its plain form (no './', no double slash); an id becomes a path below the output.

    Raises InputError, with the reason and what to do, for an id that is empty, absolute, leaves the folder it is
    looked up in, or has a backslash or a null character.
    """
    parts = [part for part in item_id.split("/") if part not in ("", ".")]
    wrong = _wrong_id(item_id, parts)
    if wrong:
        raise InputError(f"id {shown(repr(item_id))[:200]} {wrong}")
    if not parts:
        raise InputError("an image id is empty; name a file, or its path without suffix")
    return "/".join(parts)


def _wrong_id(item_id: str, parts: list[str]) -> str | None:
    if "\\" in item_id:
        return "has a backslash; write / between folders (a file whose name has one: rename it)"
    if "\0" in item_id:
        return "has a null character; take it out"
    if item_id.startswith("/"):
        return "is absolute; write it relative to the folder of the images"
    if ".." in parts:
        return "leaves its folder by '..'; write it relative to a folder above, and name that as the root"
    return None


def read_text(file: str | os.PathLike[str], limit: int = 1 << 30) -> str:
    """A whole UTF-8 text file, with or without byte order mark, up to `limit` bytes; raises InputError."""
    return decode_utf8(read_bytes(file, limit), file)


def read_bytes(file: str | os.PathLike[str], limit: int = 1 << 30) -> bytes:
    """A whole regular file of up to `limit` bytes; raises InputError (one line: the path and the reason)."""
    path = Path(file)
    try:
        return regular_bytes(path, limit)
    except OSError as e:
        raise InputError(f"{shown(path)}: {os_reason(e)}") from None
    except ValueError as e:  # an embedded null byte
        raise InputError(f"{shown(path)}: {e}") from None


def regular_bytes(path: Path, limit: int = 1 << 30) -> bytes:
    """As `read_bytes`, but raises OSError: for those who say in words of their own what is missing."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
        raise OSError("is not a regular file")
    if status.st_size > limit:
        raise OSError(f"larger than {limit >> 20} MiB; not read")
    return path.read_bytes()


def decode_utf8(data: bytes, file: str | os.PathLike[str]) -> str:
    """`data` of `file` as UTF-8 text without byte order mark; raises InputError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(f"{shown(file)}: not UTF-8 text (byte {e.start}); save it as UTF-8") from None
