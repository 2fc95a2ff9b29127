"""The options of commands and the page of settings against the fields that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from sailq.shared.generation import GenerationOptions
from sailq.shared.main import application
from sailq.shared.media.options import Options
from sailq.shared.options import flagged, shown_default
from sailq.shared.settings import Settings, WorkerOptions, flag, variable

PAGE = Path(__file__).parents[2] / "deploy/settings.md"
MODELS = [Settings, WorkerOptions, GenerationOptions, Options]


def options(command: str) -> dict[str, Any]:
    """A command's options by their names."""
    group: Any = typer.main.get_command(application())
    return {option.name: option for option in group.commands[command].params}


@pytest.mark.parametrize(("command", "models"), [
    ("ask", [GenerationOptions, Options]),
    ("chat", [GenerationOptions, Options]),
    ("caption", [GenerationOptions, Options]),
    ("bench", [GenerationOptions, Options, WorkerOptions]),
    ("worker", [WorkerOptions]),
])
def test_a_command_has_an_option_for_each_field(command: str, models: list[type[BaseModel]]) -> None:
    found = options(command)
    for model in models:
        for name in flagged(model):
            assert (found[name].opts, found[name].help) == ([flag(name)], model.model_fields[name].description)


def test_every_answer_option_but_the_form_has_a_flag() -> None:
    assert set(GenerationOptions.model_fields) - set(flagged(GenerationOptions)) == {"structured_outputs"}
    assert flagged(Options) == list(Options.model_fields) and flagged(WorkerOptions) == list(WorkerOptions.model_fields)


def expected_rows(model: type[BaseModel]) -> list[str]:
    found = {**options("bench"), **options("worker")}
    rows = []
    for name, field in model.model_fields.items():
        cells = [f"`{flag(name)} {found[name].metavar}`".replace("|", r"\|") if name in found else ""]
        cells += [f"`{variable(name)}`"] if model is Settings else []
        rows.append(f"| {' | '.join([*cells, shown_default(model, name) or '', str(field.description)])} |")
    return rows


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model.__name__))
def test_the_page_lists_each_setting_with_its_default_and_its_meaning(model: type[BaseModel]) -> None:
    section = PAGE.read_text().split(f"## {model.model_config['title']}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert rows == expected_rows(model)
