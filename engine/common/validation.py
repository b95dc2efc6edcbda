"""What pydantic found wrong, as the end of one line."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError


def first_problem(error: ValidationError, whole: str = "", hide: Collection[str] = ()) -> str:
    """The first thing that is wrong: `setting.part: what is wrong with it`.

    whole: what to name where the error is of no single setting. hide: parts of the path that the user never wrote
    (pydantic names validators and members of unions in it).
    """
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part not in hide) or whole
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
