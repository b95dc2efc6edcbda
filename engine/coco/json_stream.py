"""A large JSON object read element by element: instances_train2014.json has 450 MB and would need ten times its
size, and more, as Python objects."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import os_reason

_CHUNK = 1 << 20
_LONGEST = 64 << 20  # characters of one element; COCO's longest has well under a million


class JsonObject:
    """The arrays of a JSON object in a file; memory holds one element and a mebibyte or two of text.

    progress: called with the number of bytes each time some are read.
    """

    def __init__(self, file: Path, progress: Callable[[int], None] | None = None) -> None:
        self.file = file
        self._hash = hashlib.sha256()
        self._progress = progress
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._dropped, self._ended = "", 0, 0, False

    @property
    def sha256(self) -> str:
        """Of the whole file, once `elements` is exhausted."""
        return self._hash.hexdigest()

    def elements(self) -> Iterator[tuple[str, Any]]:
        """(key, element) of every array at the top, in the file's order; other values are passed over.

        Raises InputError, naming the file, where it cannot be read or is no JSON object.
        """
        try:
            with self.file.open("rb", buffering=0) as f:
                self._read = f.read
                yield from self._object()
        except OSError as e:
            raise InputError(f"{shown(self.file)}: {os_reason(e)}") from None
        except UnicodeDecodeError:
            raise InputError(f"{shown(self.file)}: not UTF-8 text; is it a JSON file?") from None

    def _object(self) -> Iterator[tuple[str, Any]]:
        if not self._take("{"):
            raise self._wrong("not a JSON object")
        if not self._take("}"):
            while True:
                key = self._value()
                if not isinstance(key, str) or not self._take(":"):
                    raise self._wrong("not JSON: a key is expected")
                if self._take("["):
                    yield from ((key, element) for element in self._array())
                else:
                    self._value()
                if self._take("}"):
                    break
                if not self._take(","):
                    raise self._wrong("not JSON: ',' or '}' is expected")
        if self._next():
            raise self._wrong("not JSON: more text after its end")

    def _array(self) -> Iterator[Any]:
        if self._take("]"):
            return
        while True:
            yield self._value()
            if self._take("]"):
                return
            if not self._take(","):
                raise self._wrong("not JSON: ',' or ']' is expected")

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as e:
                # Perhaps it only goes on in what is not read yet.
                if len(self._text) - self._at > _LONGEST or not self._fill():
                    raise self._wrong(f"not JSON: {e.msg}", e.pos) from None
                continue
            except (ValueError, RecursionError) as e:
                raise self._wrong(f"not usable JSON: {e}") from None
            # A number could go on too, and is told from '1' '.5' or '1' 'e+5' by three more characters.
            if end + 3 <= len(self._text) or not self._fill():
                self._at = end
                return value

    def _next(self) -> str:
        """The next character that is no white space, not taken; '' at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._fill():
                return ""

    def _take(self, character: str) -> bool:
        found = self._next() == character
        self._at += found
        return found

    def _fill(self) -> bool:
        """Read on, at least doubling what is held (so that a long element is not scanned again and again)."""
        if self._ended:
            return False
        held = self._text[self._at :]
        self._dropped += self._at
        parts, wanted = [held], max(_CHUNK, len(held))
        while wanted > 0 and not self._ended:
            data = self._read(min(wanted, _CHUNK))
            self._hash.update(data)
            self._ended = not data
            parts.append(self._decode(data, self._ended))
            wanted -= len(data)
            if self._progress:
                self._progress(len(data))
        self._text, self._at = "".join(parts), 0
        return True

    def _wrong(self, what: str, at: int | None = None) -> InputError:
        place = self._dropped + (self._at if at is None else at)
        return InputError(f"{shown(os.fspath(self.file))}: {shown(what)} (at character {place})")
