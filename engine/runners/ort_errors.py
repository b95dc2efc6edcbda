"""What ONNX Runtime's exceptions say, in the words that a user needs."""

from __future__ import annotations

import re
from typing import NamedTuple


class OrtProblem(NamedTuple):
    """Of a failed load or run."""

    node: str | None
    """The node that failed, where it says."""
    text: str

    def __str__(self) -> str:
        return f"node '{self.node}': {self.text}" if self.node else self.text


def problem(message: object) -> OrtProblem:
    """The node's name and what was expected there; the C++ source location and the codes are left out."""
    text = " ".join(str(message).split())
    found = re.search(r"[Nn]ame:'([^']+)'|[Nn]ode \(([^)]+)\)", text)
    node = next((g for g in found.groups() if g), None) if found else None
    if "Status Message:" in text:
        text = text.split("Status Message:", 1)[1].strip()
    text = re.sub(r"\S+\.(cc|h|hpp):\d+ .*?\) ?", "", text)[:300].strip(" .")
    return OrtProblem(node, text)


def out_of_memory(message: object) -> bool:
    """Whether an allocation failed."""
    text = str(message)
    return "Failed to allocate memory" in text or "bad_alloc" in text
