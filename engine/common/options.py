"""Settings objects as command-line options: a model's fields become options, and the command gets the model back.

    @options
    def run(bundle: Annotated[Path, typer.Argument()], source: SourceSettings,
            training: Annotated[dict[str, Any], Changes(StageConfig)]) -> None: ...

A parameter of a pydantic model's type stands for all its fields, in their order: the field's name, default and
description are the option's, `ge` and `le` of a whole number its bounds. `option()` makes a field whose option has
another name, or bounds that are no whole numbers. Options of two parameters that have the same name are one option,
which both get. The model is built from what was given, so its own validation speaks (InputError, naming the option).
Choices (`Literal`) are checked there too; a field that is a tuple of numbers is written with
commas.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import annotated_types
import typer
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from infercam.engine.common.errors import InputError
from infercam.engine.common.validation import first_problem

Command = TypeVar("Command", bound=Callable[..., Any])


def option(default: Any, help: str, *names: str, **constraints: Any) -> Any:
    """A pydantic field whose option is called `names` (default: the field's own name)."""
    return Field(default, description=help, json_schema_extra={"option": list(names)}, **constraints)


@dataclass(frozen=True)
class Changes:
    """Marks a parameter that gets, as a dictionary, those fields of a model that the command line sets.

    For settings that also come from a file: what is not given must stay what the file says. only: these fields;
    hide: not these.
    """

    model: type[BaseModel]
    only: Collection[str] | None = None
    hide: Collection[str] = ()

    def fields(self) -> dict[str, FieldInfo]:
        found = self.model.model_fields
        return {
            n: f for n, f in found.items() if (self.only is None or n in self.only) and n not in self.hide
        }


def options(command: Command) -> Command:
    """The command with every settings parameter spread into options, for `app.command`."""
    hints = get_type_hints(command, include_extras=True)
    models: dict[str, type[BaseModel] | Changes] = {}
    spread: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        model = _settings(hints[name])
        if model is None:
            spread[name] = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        models[name] = model
        fields = model.fields() if isinstance(model, Changes) else model.model_fields
        for field_name, field in fields.items():
            spread.setdefault(field_name, _parameter(field_name, field, isinstance(model, Changes)))

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        built = {name: _built(model, given) for name, model in models.items()}
        own = {name: given[name] for name in hints.keys() & given.keys() - models.keys()}
        return command(**own, **built)

    call.__signature__ = inspect.Signature(list(spread.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: p.annotation for name, p in spread.items()}
    return call  # type: ignore[return-value]


def _settings(hint: Any) -> type[BaseModel] | Changes | None:
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Changes)), None)
    return hint if inspect.isclass(hint) and issubclass(hint, BaseModel) else None


def _built(model: type[BaseModel] | Changes, given: dict[str, Any]) -> Any:
    if isinstance(model, Changes):
        fields = model.fields()
        return {n: _value(n, f, given[n]) for n, f in fields.items() if given[n] is not None}
    try:
        return model.model_validate({n: _value(n, f, given[n]) for n, f in model.model_fields.items()})
    except ValidationError as e:
        raise InputError(_named(model, first_problem(e))) from None


def _named(model: type[BaseModel], problem: str) -> str:
    """The problem, with the option in place of the field's name."""
    field, colon, rest = problem.partition(": ")
    if not colon or field not in model.model_fields:
        return problem
    return f"{_option_names(field, model.model_fields[field])[-1]}: {rest}"


def _option_names(name: str, field: FieldInfo) -> list[str]:
    extra = field.json_schema_extra
    chosen = extra.get("option") if isinstance(extra, dict) else None
    return (
        [str(n) for n in chosen] if isinstance(chosen, list) and chosen else [f"--{name.replace('_', '-')}"]
    )


def _parameter(name: str, field: FieldInfo, changes: bool) -> inspect.Parameter:
    names, kind = _option_names(name, field), _bare(field.annotation)
    optional = changes or field.default is None
    if kind is bool and "/" not in names[-1] and (optional or field.default is True):
        names[-1] += "/" + names[-1].replace("--", "--no-", 1)
    help_text = field.description or ""
    if changes and field.default is not None:
        help_text += f" (default: {_text(field.default)})"
    written = str if _is_choice(kind) or _is_numbers(kind) else kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if changes else field.get_default(call_default_factory=True),
        annotation=Annotated[
            written | None if optional else written,
            typer.Option(*names, help=help_text.strip(), **_bounds(field)),
        ],
    )


def _bare(annotation: Any) -> Any:
    """The type without `| None` and without pydantic's own marks."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_numbers(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """Of whole numbers and of `option()`: the help shows them. What else is out of range the model refuses."""
    asked = isinstance(field.json_schema_extra, dict) and "option" in field.json_schema_extra
    if _bare(field.annotation) is not int and not asked:
        return {}
    return {
        bound: getattr(rule, attribute)
        for rule in field.metadata
        for attribute, bound, of in (("ge", "min", annotated_types.Ge), ("le", "max", annotated_types.Le))
        if isinstance(rule, of)
    }


def numbers(name: str, text: str) -> list[float]:
    """`1,0.5` as numbers; raises InputError, which names the option."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} {text}: write numbers separated by commas") from None


def settings_text(given: Sequence[str] | None, name: str = "--set") -> dict[str, Any]:
    """`NAME=JSON` as often as it is written; what is no JSON is text. Raises InputError."""
    out: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{name} {text}: write NAME=VALUE")
        try:
            out[key] = json.loads(value)
        except ValueError:
            out[key] = value
    return out


def _value(name: str, field: FieldInfo, given: Any) -> Any:
    """What the model is given: `1,0.5` as numbers, everything else as it came."""
    if given is None or not _is_numbers(_bare(field.annotation)) or not isinstance(given, str):
        return given
    name, parts = _option_names(name, field)[-1], get_args(_bare(field.annotation))
    found = tuple(numbers(name, given))
    if Ellipsis not in parts and len(found) != len(parts):
        raise InputError(f"{name} {given}: write {len(parts)} numbers separated by commas")
    return found


def _text(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
