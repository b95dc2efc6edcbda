"""`--shard i/n`: a fixed share of a source, for schedulers that start the same command n times."""

from __future__ import annotations

import re
from dataclasses import dataclass

from infercam.engine.common.errors import InputError
from infercam.engine.data.sources import Source

_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True)
class Shard:
    """Share `index` of `count`, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From 'i/n'; raises InputError where it is not 1 <= i <= n."""
        found = _SHARD.fullmatch(text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {text}: write I/N with 1 <= I <= N, for example 3/8")
        return cls(int(found[1]), int(found[2]))

    @property
    def tag(self) -> str:
        """Names this share's own files: `index-3-of-8.jsonl`."""
        return f"{self.index}-of-{self.count}"

    def of(self, source: Source) -> Source:
        """Every count-th image: shares differ by one image at most, and neighbours, which are often alike in size
        and number of classes, are spread over all of them."""
        return source[self.index - 1 :: self.count]
