"""How the images that are asked for and those that a store has lie to each other, in words for errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from infercam.engine.common.errors import shown


def coverage(
    noun: str,
    wanted: Collection[str],
    absent: Collection[str],
    split: str,
    has: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    """How many of the wanted images are absent, how many others there are, and what to do.

    noun: 'maps' or 'labels'. wanted: all ids of `split`; absent: those that have none. has: the ids of the store.
    settings: those of the store, which name what it was made from.
    """
    count = (
        f"no {noun} for {len(absent)} of the {len(wanted)} images of {shown(split)} ({_some(sorted(absent))})"
    )
    if not has:
        return f"{count}: it has none at all; `infercam run` makes them"
    known = set(wanted)
    others = [id for id in has if id not in known]
    if len(absent) == len(wanted):
        source = _source(settings)
        made = f", made from {source}" if source else ""
        none = f"none of the {len(has)} that it has{made} ({_some(others)}) is among them"
        return f"{count}; {none}: {_advice(settings, split)}"
    beside = (
        f"; {len(others)} of the {len(has)} that it has are no images of it ({_some(others)})"
        if others
        else ""
    )
    return f"{count}{beside}; finish the run, or choose --missing skip or zero"


def _advice(settings: Mapping[str, Any], split: str) -> str:
    own = _own_split(settings)
    if own is not None and own != split:
        return f"is this the right split? Name the images that were run (--split {shown(own)}), or run these"
    return "is this the right split? Name the images that were run; ids (a path without suffix) must be equal"


def _own_split(settings: Mapping[str, Any]) -> str | None:
    """The split of a VOC or COCO tree that a store was made from."""
    source = settings.get("source")
    if isinstance(source, Mapping) and source.get("kind") in ("voc", "coco") and source.get("split"):
        return str(source["split"])
    return None


def _source(settings: Mapping[str, Any]) -> str:
    source = settings.get("source")
    if not isinstance(source, Mapping):
        return ""
    named = f"split {source.get('split')} of " if _own_split(settings) else ""
    where = source.get("split") if source.get("kind") == "list" else source.get("root")
    return shown(f"{named}{where}") if where else ""


def _some(ids: Sequence[str]) -> str:
    return ", ".join(shown(id)[:60] for id in ids[:3]) + (", …" if len(ids) > 3 else "")
