"""Settings models as command-line options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typer.testing import CliRunner

from infercam.engine.common.errors import InputError
from infercam.engine.common.options import Changes, option, options


class Where(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = option(None, "Where they lie.")
    list_file: Path | None = option(None, "A list.", "--list")
    limit: int | None = option(None, "So many.", ge=1)
    split: str = option("val", "Which.")

    @model_validator(mode="after")
    def _one(self) -> Where:
        if self.folder is not None and self.list_file is not None:
            raise ValueError("give --folder or --list, not both")
        return self


class Training(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=8, ge=1, description="passes")
    rate: float = Field(default=0.1, gt=0)
    mirror: bool = True
    head: Literal["v2", "v3"] = "v2"
    scales: tuple[float, ...] = (1.0, 0.5)
    crop: tuple[int, int] = (3, 4)
    hidden: int = 3


seen: dict[str, Any] = {}


@options
def work(
    out: Annotated[Path, typer.Argument()],
    where: Where,
    changes: Annotated[dict[str, Any], Changes(Training, hide=("hidden",))],
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    quick: bool = False,
) -> None:
    """Do it."""
    seen.update(out=out, where=where, changes=changes, json_file=json_file, quick=quick)


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(work)
    seen.clear()
    return CliRunner().invoke(app, list(arguments))


def test_fields_are_options_and_come_back_as_the_model() -> None:
    ran = run("o", "--folder", "f", "--limit", "3", "--json", "j", "--quick")
    assert ran.exit_code == 0, ran.output
    assert seen["where"] == Where(folder=Path("f"), limit=3)
    assert seen["changes"] == {}
    assert (seen["out"], seen["json_file"], seen["quick"]) == (Path("o"), Path("j"), True)


def test_other_names_and_defaults() -> None:
    assert run("o", "--list", "l.txt").exit_code == 0
    assert seen["where"] == Where(list_file=Path("l.txt"), split="val")
    assert run("o", "--list-file", "l.txt").exit_code == 2


def test_only_what_is_given_is_a_change() -> None:
    ran = run("o", "--epochs", "8", "--no-mirror", "--scales", "1,0.5,2", "--head", "v3")
    assert ran.exit_code == 0, ran.output
    assert seen["changes"] == {"epochs": 8, "mirror": False, "scales": (1.0, 0.5, 2.0), "head": "v3"}
    Training(**seen["changes"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--folder", "f", "--list", "l"], "give --folder or --list, not both"),
        (["--scales", "1,x"], "--scales 1,x: write numbers separated by commas"),
        (["--crop", "3"], "--crop 3: write 2 numbers separated by commas"),
    ],
)
def test_what_the_model_refuses_is_one_line(arguments: list[str], says: str) -> None:
    ran = run("o", *arguments)
    assert isinstance(ran.exception, InputError)
    assert str(ran.exception) == says


def test_bounds_of_whole_numbers_are_typers_and_the_others_the_models() -> None:
    assert run("o", "--limit", "0").exit_code == 2
    assert run("o", "--epochs", "0").exit_code == 2
    assert run("o", "--rate", "-1").exit_code == 0 and seen["changes"] == {"rate": -1.0}


def test_help_says_all() -> None:
    text = " ".join(run("--help").output.replace("│", " ").split())
    for word in (
        "--folder",
        "--list",
        "--split",
        "[default: val]",
        "--epochs",
        "passes (default: 8)",
        "Do it.",
    ):
        assert word in text, word
    assert "hidden" not in text
