"""Options of the command line. An option for a field of a model has its help, default and bounds in the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_origin

import typer
from pydantic import BaseModel

from .settings import Settings, flag, variable
from .validation import Flag


def shown_default(model: type[BaseModel], name: str) -> str | None:
    """The text that help shows as a field's default; None if it shows none."""
    field = model.model_fields[name]
    if field.default in (None, ()):
        return next((one.default for one in field.metadata if isinstance(one, Flag)), None)
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def flagged(model: type[BaseModel]) -> list[str]:
    """The fields that have a `Flag`."""
    return [name for name, field in model.model_fields.items() if any(isinstance(one, Flag) for one in field.metadata)]


def option(model: type[BaseModel], name: str, *, default: str | None = None) -> Any:
    """The typer option of a field. `default`: shown in place of the model's default.

    The command gets None if the option is not given, so that the model's default or environment variable applies.
    """
    field = model.model_fields[name]
    return typer.Option(
        flag(name),
        metavar=next((one.metavar for one in field.metadata if isinstance(one, Flag)), None),
        envvar=variable(name) if model is Settings else None,
        show_default=default or shown_default(model, name) or False,
        help=field.description,
    )


def takes(**models: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that replaces each parameter named in `models` with an option for each field of that model that has a
    `Flag`.

    The function gets a dict of the fields that were given. `parse` checks it:

        @takes(generation=GenerationOptions)
        def ask(prompt: str, generation: dict[str, Any]) -> None: ...
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        kept = [parameter for name, parameter in own.parameters.items() if name not in models]
        made = [_parameter(model, name) for model in models.values() for name in flagged(model)]

        @wraps(command)
        def with_models(**given: Any) -> None:
            for parameter, model in models.items():
                fields = {name: given.pop(name) for name in flagged(model)}
                given[parameter] = {name: value for name, value in fields.items() if value not in (None, [])}
            command(**given)

        with_models.__signature__ = own.replace(parameters=[*kept, *made])  # type: ignore[attr-defined]
        return with_models

    return decorate


def _parameter(model: type[BaseModel], name: str) -> inspect.Parameter:
    made = option(model, name)
    made.rich_help_panel = model.model_config["title"]
    kind: Any = model.model_fields[name].annotation
    kind = list[str] if get_origin(kind) is tuple else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, made]
    )


RedisUrl = Annotated[str | None, option(Settings, "redis_url")]
OwnRedisUrl = Annotated[str | None, option(Settings, "redis_url", default="an embedded server")]
"""`RedisUrl` for commands that start an embedded server if no URL is given."""
Model = Annotated[str | None, option(Settings, "model")]
Alias = Annotated[str | None, option(Settings, "alias")]
MetricsPort = Annotated[int | None, option(Settings, "metrics_port")]
MetricsAddress = Annotated[str | None, option(Settings, "metrics_address")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
