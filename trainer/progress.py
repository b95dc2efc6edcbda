"""The progress of a long job on the terminal: a bar with rate and ETA, and lines that stay."""

from __future__ import annotations

import rich.progress as bars
from rich.console import Console

console = Console(stderr=True, highlight=False, markup=False)


class Progress:
    """A bar where stderr is a terminal; `say` prints a line either way. Silent where `shown` is false."""

    def __init__(self, what: str, total: int, shown: bool = True) -> None:
        self._shown = shown
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[detail]}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(what, total=total, detail="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._bar.stop()

    def skip(self, images: int) -> None:
        """Images that an earlier run did: they count as done, not for the rate."""
        self._bar.update(self._task, completed=images)

    def advance(self, images: int, detail: str = "", losses: dict[str, float] | None = None) -> None:
        task = self._bar.tasks[self._task]
        parts = [detail] if detail else []
        parts += [f"{name} {value:.3f}" for name, value in (losses or {}).items()]
        parts.append(f"{task.speed or 0:.1f} images/s")
        self._bar.update(self._task, advance=images, detail=", ".join(parts))

    def say(self, line: str) -> None:
        if self._shown:
            self._bar.console.print(line, soft_wrap=True)
