"""Protobuf's text format, as far as `config.pbtxt` needs it: so that packaging works without protobuf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

Scalar: TypeAlias = "str | int | bool"
Message: TypeAlias = "Mapping[str, Scalar | Message | Sequence[Scalar | Message]]"


class Word(str):
    """A value that is written without quotes: the name of an enumeration's member."""


def to_text(message: Message) -> str:
    """`message` in protobuf's text format: field names to values; a sequence is a repeated field.

    A map field is a sequence of messages with `key` and `value`, as protobuf itself has it.
    """
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Message, indent: str) -> Iterator[str]:
    for field, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(field, value, indent)
        elif isinstance(value, str) or not isinstance(value, Sequence):
            yield f"{indent}{field}: {_scalar(value)}"
        elif any(isinstance(v, Mapping) for v in value):
            for part in value:
                assert isinstance(part, Mapping), f"{field}: messages and scalars in one field"
                yield from _block(field, part, indent)
        else:
            yield f"{indent}{field}: [{', '.join(_scalar(v) for v in value if not isinstance(v, Mapping))}]"


def _block(field: str, message: Message, indent: str) -> Iterator[str]:
    yield f"{indent}{field} {{"
    yield from _lines(message, indent + "  ")
    yield f"{indent}}}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """Plain ASCII in double quotes; every other byte of its UTF-8 as an octal escape."""
    plain = set(range(0x20, 0x7F)) - {ord('"'), ord("\\")}
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'
