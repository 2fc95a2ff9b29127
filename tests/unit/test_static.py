"""Static checks of the tree: ruff, strict mypy on the installed package, imports, containers."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from sailq.worker.engine.families.registry import FAMILIES

ROOT = Path(__file__).parents[2]
SIDES = ("shared", "producer", "worker", "operators")
PACKAGES = tuple(f"sailq.{side}" for side in SIDES)
DOCKERFILES = sorted(ROOT.glob("deploy/**/*Dockerfile"))


def run(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")


@pytest.mark.proof
def test_strict_mypy_on_the_installed_package(tmp_path: Path) -> None:
    # From a copy, because setuptools leaves a build folder beside the sources and a later build reads it.
    source, installed = tmp_path / "source", tmp_path / "installed"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "demo-out", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--target", str(installed), str(source))
    config = ["--config-file", str(ROOT / "pyproject.toml")]
    packages = [argument for package in PACKAGES for argument in ("-p", package)]
    run(sys.executable, "-m", "mypy", *config, *packages, cwd=installed, env={"MYPYPATH": str(installed)})


def test_strict_mypy_on_the_tree() -> None:
    """Every import resolves to a file of the tree, as in an editor, without the installed package."""
    packages = [argument for package in PACKAGES for argument in ("-p", package)]
    run(sys.executable, "-m", "mypy", *packages)


@pytest.mark.proof
def test_strict_mypy_on_the_preparation_of_models() -> None:
    """PyTorch's types take most of a minute."""
    run(sys.executable, "-m", "mypy", "-p", "deploy.models")


@pytest.mark.parametrize("folder", ["deploy", "tests"])
def test_no_file_changes_where_python_looks_for_modules(folder: str) -> None:
    change = re.compile(r"""sys\.path(\[.*\])?\s*(\+?=|\.\w+\()|syspath_\w+\(|addsitedir\(|setattr\(sys, .path""")
    files = [file for kind in ("py", "sh") for file in (ROOT / folder).rglob(f"*.{kind}")]
    assert files and not [file for file in files if change.search(file.read_text())]


@pytest.mark.parametrize("side", (*SIDES, "deploy"))
def test_no_relative_import_leaves_its_folder(side: str) -> None:
    for file in (ROOT / side).rglob("*.py"):
        depth = len(file.relative_to(ROOT).parent.parts)
        levels = [node.level for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        assert all(level <= depth for level in levels), file


def imports(folder: str) -> dict[str, set[str]]:
    """What each module under `folder` imports, in functions too; relative names resolved."""
    found = {}
    for file in (ROOT / folder).rglob("*.py"):
        package = ["sailq", *file.relative_to(ROOT).parent.parts]
        names = found[".".join(package if file.stem == "__init__" else [*package, file.stem])] = set[str]()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names.update(name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                for name in node.names:
                    below = f"{module}.{name.name}"
                    place = ROOT / below.replace(".", "/")
                    names.add(below if place.is_dir() or place.with_suffix(".py").is_file() else module)
    return found


def test_no_module_imports_itself_through_others() -> None:
    """An import also runs the packages that contain the imported module, but for those of the importing one."""
    graph = {name: names for side in SIDES for name, names in imports(side).items()}
    for name, names in graph.items():
        packages = {package for one in names for package in parents(one)} - parents(name) - {name}
        graph[name] = (names | packages) & graph.keys()
    TopologicalSorter(graph).prepare()


def parents(name: str) -> set[str]:
    """The packages that contain a module."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


@pytest.mark.parametrize(
    ("side", "foreign"),
    [
        ("shared", ("sailq.producer", "sailq.worker", "sailq.operators")),
        ("producer", ("sailq.worker", "sailq.operators")),
        ("worker", ("sailq.producer", "sailq.operators")),
        ("operators", ("sailq.producer", "sailq.worker")),
    ],
)
def test_no_folder_imports_one_that_it_must_not_know(side: str, foreign: tuple[str, ...]) -> None:
    found = imports(side)
    assert found and not [name for names in found.values() for name in names if name.startswith(foreign)]


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """What an import of `start`, or a call of what it has, may import."""
    found, left = set[str](), {start}
    while left:
        found |= left
        left = {name for one in left for name in graph.get(one, ())} - found
    return found


WEB = {"fastapi", "starlette", "uvicorn", "uvloop", "python_multipart", "httpx", "httpcore", "openai"}


def test_only_the_gateway_knows_the_packages_of_a_web_server() -> None:
    servers = {"fastapi", "starlette", "uvicorn", "python_multipart"}
    knowing = {name for name, names in imports("producer").items() if {one.split(".")[0] for one in names} & servers}
    assert knowing and all(name.startswith("sailq.producer.gateway.") for name in knowing)


@pytest.mark.parametrize("start", ["client", "aio", "commands.ask", "commands.caption", "commands.chat"])
def test_clients_do_without_the_gateway(start: str) -> None:
    graph = {name: names for side in SIDES for name, names in imports(side).items()}
    found = reached(f"sailq.producer.{start}", graph)
    assert "sailq.producer.client" in found and not {name.split(".")[0] for name in found} & WEB
    assert not [name for name in found if name.startswith(("sailq.producer.gateway", "sailq.producer.openai_api"))]


def test_openais_forms_do_not_know_the_gateway() -> None:
    assert not [name for names in imports("producer/openai_api").values() for name in names if "gateway" in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_module_names_a_model_family(family: str) -> None:
    """But for the registry, and the list of published models, which has their paths. The name of a model, such as
    qwen2-vl-7b in an example, is not that of its family."""
    name = re.compile(family.replace("_", "[-_. ]?") + r"(?![- ]\d+b)", re.IGNORECASE)
    folder = ROOT / "worker" / "engine" / "families"
    own = {folder / f"{family}.py", folder / "registry.py"}
    naming = {file for side in SIDES for file in (ROOT / side).rglob("*.py") if name.search(file.read_text())}
    assert naming - {ROOT / "worker" / "model_files" / "published.py"} == own


@pytest.mark.parametrize("side", SIDES)
def test_torch_is_no_dependency_of_the_package(side: str) -> None:
    roots = {name.split(".")[0] for names in imports(side).values() for name in names}
    assert not roots & {"torch", "torchvision"}


def test_compose_names_files_that_exist_and_only_services_that_it_has() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    for service in services.values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source == "/opt/sophon" or source in compose["volumes"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_not_root_and_copy_what_exists(path: Path) -> None:
    lines = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    instructions = [(words[0], words[1:]) for words in lines]
    images = [words[0] for name, words in instructions if name == "FROM"]
    assert images and all(":" in image and not image.endswith(":latest") for image in images)
    assert [words for name, words in instructions if name == "USER"][-1] != ["root"]
    assert instructions[-1][0] in {"CMD", "ENTRYPOINT"} and instructions[-1][1][0].startswith("[")
    for name, words in instructions:
        if name == "COPY" and not words[0].startswith("--from"):
            assert all((ROOT / source).exists() for source in words[:-1]), words


def test_there_are_images_for_both_sides() -> None:
    names = {path.name for path in DOCKERFILES}
    assert names >= {"worker.Dockerfile", "worker-tpu.Dockerfile", "producer.Dockerfile"}


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
