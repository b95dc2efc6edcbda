"""Map formats that other packages bring, through the entry-point group `infercam.map_formats`.

    [project.entry-points."infercam.map_formats"]
    mine = "my_package.maps:MyCodec"

The name is the format's, the object a subclass of record.Codec that is made without arguments. What infercam's own
trainer brings is the writer of irn's maps: that needs torch, which this room does without.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from infercam.engine.common.errors import StoreError
from infercam.engine.store.record import Codec

GROUP = "infercam.map_formats"


def added_names() -> tuple[str, ...]:
    """The formats that installed packages bring, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


@cache
def added_codec(name: str) -> Codec | None:
    """That format's codec, None where no package brings it.

    Raises ImportError as the package does, StoreError where what it names is no codec; only successes are kept.
    """
    for point in entry_points(group=GROUP, name=name):
        codec = point.load()()
        if not isinstance(codec, Codec):
            raise StoreError(f"{point.value}: registered as map format {name!r}, but is no Codec")
        return codec
    return None
