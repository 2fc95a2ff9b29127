"""deploy/gateway/README.md says of requests, keys and errors what the code does."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from sailq.producer.gateway.app import create_app
from sailq.producer.gateway.folder import Folder
from sailq.producer.gateway.keys import VARIABLE, ApiKey, Keys
from sailq.producer.media_fetching import MediaFetcher
from sailq.producer.openai_api import errors
from sailq.producer.openai_api.requests import _IGNORED, _NEUTRAL, ChatRequest
from sailq.shared.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "deploy/gateway/README.md").read_text()
SOURCES = [*ROOT.glob("producer/gateway/**/*.py"), *ROOT.glob("producer/openai_api/*.py")]


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    below = PAGE.partition(f"\n## {heading}\n")[2]
    table = re.findall(r"(?m)^\|.*\n(?=\|)|^\|.*$", below.partition("\n## ")[0])
    return [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table[2:]]


def named(text: str) -> set[str]:
    return set(re.findall(r"`([\w-]+)`", text))


def test_each_field_of_a_request_is_on_the_page() -> None:
    (supported, ignored, refused) = (row[1] for row in rows("Fields of a request")[:3])
    assert named(supported) == {*ChatRequest.model_fields}
    assert named(ignored) == _IGNORED
    expected = [f"`{name}`" + "".join(f" ({value})" for value in [shown(name)] if value) for name in sorted(_NEUTRAL)]
    assert refused == ", ".join(expected)


def shown(name: str) -> str:
    return " or ".join(json.dumps(value) for value in _NEUTRAL[name])


def test_each_field_of_a_key_is_on_the_page() -> None:
    assert {name for row in rows("Keys") for name in named(row[0])} == {*ApiKey.model_fields}


def test_the_pages_name_the_variable_of_the_keys() -> None:
    assert all(f"`{VARIABLE}`" in text for text in (PAGE, (ROOT / "deploy/settings.md").read_text()))


def raised() -> set[tuple[int, str]]:
    """(status, code) of each error that the gateway's code makes."""
    found = {(status, code) for status, _, code in errors._STATUS.values()}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):  # codes by status
                found.update(
                    (key.value, value.value) for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and isinstance(key.value, int)
                    and isinstance(value, ast.Constant) and isinstance(value.value, str)
                )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.update(made(node.func.id, node))
    return found


def made(name: str, call: ast.Call) -> Iterator[tuple[int, str]]:
    """(status, code) of a call that makes an error."""
    given = [one.value if isinstance(one, ast.Constant) else None for one in call.args]
    named = {one.arg: one.value.value for one in call.keywords if isinstance(one.value, ast.Constant)}
    if name == "ApiError" and isinstance(given[0], int) and isinstance(named.get("code"), str):
        yield given[0], str(named["code"])
    if name == "_invalid":
        yield 400, str(given[2]) if len(given) > 2 else "invalid_value"
    if name == "unavailable":
        yield 503, str(given[1])


def test_each_error_is_on_the_page() -> None:
    codes = [(int(status), code) for status, cell, _ in rows("Errors") for code in sorted(named(cell))]
    assert len(codes) == len(set(codes)) and set(codes) == raised()


def test_each_route_is_on_the_page(tmp_path: Path) -> None:
    fetcher = MediaFetcher([], max_bytes=1, max_seconds=1)
    app = create_app(Settings(), Keys(None), fetcher, max_body=1, local=True, folder=Folder(tmp_path, 1))
    routes = {
        (method.upper(), re.sub(r"{(\w+)}", lambda name: name[1].upper(), path))
        for path, methods in app.openapi()["paths"].items() for method in methods
    }
    first = PAGE.partition("| route |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([A-Z]+) (/\S+)`", first)) == routes
