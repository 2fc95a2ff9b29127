"""Shared by the benchmarks: the folder of their tables and plots, and their model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.bench.markdown import markdown

OUT = Path(__file__).parents[2] / "bench-out"

Table = Callable[[str, Sequence[str], Sequence[Sequence[str]]], None]
Bars = Callable[[str, str, Mapping[str, float]], None]


@pytest.fixture
def table(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Table:
    """Prints a table with the command that makes it, and writes it to bench-out."""

    def write(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        file = Path(request.node.path).relative_to(OUT.parent)
        text = f"{title}\n`.venv/bin/python -m pytest -m bench {file}`:\n\n{markdown(head, rows)}\n"
        OUT.mkdir(exist_ok=True)
        (OUT / f"{request.node.name}.md").write_text(text)
        with capsys.disabled():
            print(f"\n{text}")

    return write


@pytest.fixture
def bars(request: pytest.FixtureRequest) -> Bars:
    """Draws a bar for each value into bench-out."""

    def draw(title: str, unit: str, values: Mapping[str, float]) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 0.6 + 0.5 * len(values)), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=unit)
        axes.bar_label(axes.barh(list(values), list(values.values()), color="tab:blue"), fmt="%.3g", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        OUT.mkdir(exist_ok=True)
        figure.savefig(OUT / f"{request.node.name}.png", dpi=120)

    return draw


@pytest.fixture(scope="session")
def model() -> Iterator[Path]:
    """The random model of about 250 M parameters."""
    from tests.bench.random_model import make

    folder = Path(tempfile.mkdtemp(prefix="sailq-bench-"))
    try:
        make(folder / "random-250m")
        yield folder / "random-250m"
    finally:
        shutil.rmtree(folder)
