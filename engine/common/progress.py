"""Progress on the terminal: every bar of the project, with count, rate and time left, on stderr.

Nothing of a bar is shown where stderr is not a terminal; what `JobProgress.say` prints is shown there too.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

stderr = Console(stderr=True, highlight=False, markup=False)


class RateColumn(ProgressColumn):
    """How many a second, lately."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s")


class DetailColumn(ProgressColumn):
    """A task's field `detail`, where it has one."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("detail", ""))


def counting_bar(
    unit: str | None = "images", console: Console | None = None, *, transient: bool = True
) -> Progress:
    """Tasks are counted in `unit` (None: without a rate); their field `detail` is shown beside it."""
    rate = () if unit is None else (RateColumn(unit),)
    return _bar(MofNCompleteColumn(), *rate, DetailColumn(), console=console, transient=transient)


def reading_bar() -> Progress:
    """Tasks are counted in bytes."""
    return _bar(DownloadColumn(), TransferSpeedColumn(), transient=True)


def _bar(*columns: ProgressColumn, console: Console | None = None, transient: bool) -> Progress:
    console = console or stderr
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
        refresh_per_second=4,
    )


class JobProgress:
    """One long job: a bar that stays, and lines beside it. Silent where `shown` is false."""

    def __init__(self, what: str, total: int, shown: bool = True) -> None:
        self._shown = shown
        self._bar = counting_bar(console=stderr if shown else Console(quiet=True), transient=False)
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> JobProgress:
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
        parts = [detail] if detail else []
        parts += [f"{name} {value:.3f}" for name, value in (losses or {}).items()]
        self._bar.update(self._task, advance=images, detail=", ".join(parts))

    def say(self, line: str) -> None:
        """A line that stays, on a terminal or not."""
        if self._shown:
            self._bar.console.print(line, soft_wrap=True)
