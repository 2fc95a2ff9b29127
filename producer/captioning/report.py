"""Writes a batch as one self-contained HTML page: no scripts, no network, pictures included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from sailq.shared.errors import BadRequest

from .batch import Summary, number, right, seconds
from .rows import Row, failed, why

_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --text: #1b1e24; --dim: #656d7a;
  --line: #dfe3e9; --good: #12794a; --bad: #c22f2f; --shade: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --text: #e7e9ee;
  --dim: #98a1af; --line: #2f343d; --good: #4cc38a; --bad: #ff7b72; --shade: #272b33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
main, header { max-width: 1280px; margin: 0 auto; padding: 1rem; }
h1 { margin: .5rem 0 0; font-size: 1.35rem; }
.model { margin: 0 0 1rem; color: var(--dim); }
dl.summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .5rem; margin: 0; }
dl.summary div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .75rem; }
dt { color: var(--dim); font-size: .8rem; }
dl.summary dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
dd small { display: block; color: var(--dim); font-size: .75rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .75rem; }
article { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; overflow: hidden; content-visibility: auto; contain-intrinsic-size: auto 18rem; }
article.failed { border-color: var(--bad); }
.media { display: flex; flex-wrap: wrap; gap: 2px; justify-content: center; min-height: 96px;
  background: var(--shade); }
.media img { display: block; height: 96px; max-width: 100%; object-fit: contain; }
.media p { margin: auto; color: var(--dim); font-size: .85rem; }
.body { display: flex; flex-direction: column; gap: .4rem; padding: .75rem; flex: 1; overflow-wrap: anywhere; }
.body p { margin: 0; }
.question { color: var(--dim); font-size: .85rem; }
.text { white-space: pre-wrap; }
.truth { font-size: .85rem; color: var(--dim); white-space: pre-wrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.body .foot { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .75rem; margin-top: auto;
  padding-top: .3rem; color: var(--dim); font-size: .78rem; font-variant-numeric: tabular-nums; }
"""


def write_report(
    path: Path,
    rows: Sequence[Row],
    summary: Summary,
    thumbnails: Mapping[int, Sequence[str]],
    *,
    model: str,
    questions: Mapping[int, str],
) -> None:
    """Writes the page to `path`.

    Args:
        rows: the rows of a batch, in the order of the page.
        thumbnails: data URIs of pictures by a row's index.
        questions: what was asked, by a row's index.

    Raises BadRequest for a path that cannot be written.
    """
    parts = [_head(rows, summary, model), "<main>\n"]
    for row in rows:
        index = row["index"]
        parts.append(_card(row, thumbnails.get(index, ()), questions.get(index, "")))
    parts.append("</main>\n</html>\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(parts), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise BadRequest(f"The report cannot be written to {path}: {error.strerror}.") from None


def _head(rows: Sequence[Row], summary: Summary, model: str) -> str:
    judged = [verdict for row in rows if (verdict := right(row)) is not None]
    first = summary.first_token_median
    figures = [
        ("clips", str(summary.clips), f"{summary.resumed} by an earlier run" if summary.resumed else ""),
        ("failures", str(summary.failures), ""),
        *([("as the truth", f"{sum(judged)} of {len(judged)}", "")] if judged else []),
        ("time to first token", seconds(first), f"{seconds(summary.first_token_p90)} at 90 %" if first else ""),
        ("tokens/s", number(summary.tokens_per_second), f"{number(summary.stream_tokens_per_second)} each answer"),
        ("captions/s", number(summary.captions_per_second), ""),
        ("wall time", seconds(summary.wall), ""),
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{more}</small>' if more else ''}</dd></div>\n"
        for name, value, more in figures
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{summary.clips} captions by {escape(model)}</title>\n<style>{_STYLE}</style>\n"
        f'<header>\n<h1>{summary.clips} captions</h1>\n<p class="model">by {escape(model)}</p>\n'
        f'<dl class="summary">\n{cells}</dl>\n</header>\n'
    )


def _card(row: Row, pictures: Sequence[str], question: str) -> str:
    images = "".join(f'<img loading="lazy" decoding="async" alt="" src="{escape(picture)}">' for picture in pictures)
    return (
        f"<article{' class=failed' if failed(row) else ''}>\n"
        f'<div class="media">{images or "<p>no picture</p>"}</div>\n<div class="body">\n'
        f"{''.join(_body(row, question))}"
        f"{''.join(f'<p class=truth>{escape(line)}</p>' for line in _frames(row))}"
        f'<p class="foot"><span>{escape(_source(row))}</span><span>{escape(_timings(row))}</span></p>\n'
        "</div>\n</article>\n"
    )


def _body(row: Row, question: str) -> Iterable[str]:
    if question:
        yield f'<p class="question">{escape(question)}</p>\n'
    if row["text"]:
        yield f'<p class="text">{escape(row["text"])}{_mark(right(row))}</p>\n'
    if (reason := why(row)) is not None:
        code = f" <small>({escape(row['error']['code'])})</small>" if row["error"] else ""
        yield f'<p class="bad">{escape(reason)}{code}</p>\n'
    if right(row) is False:
        yield f'<p class="truth">truth: {escape(str(row["metadata"]["answer"]))}</p>\n'


def _mark(verdict: bool | None) -> str:
    if verdict is None:
        return ""
    return (
        ' <span class="good" title="matches the truth">✓</span>'
        if verdict
        else (' <span class="bad" title="differs from the truth">✗</span>')
    )


def _source(row: Row) -> str:
    task = row["metadata"].get("task")
    return f"{task} · {row['source']}" if isinstance(task, str) else str(row["source"])


def _frames(row: Row) -> Iterable[str]:
    """The sampled frames of each video, in words."""
    for medium in row.get("media", ()):
        if times := medium.get("times"):
            rate = f", {number(medium['fps'])} a second" if medium["fps"] else ""
            yield f"{len(times)} frames from {times[0]:g} s to {times[-1]:g} s{rate}"
    if damaged := row.get("damaged_frames"):
        yield f"{damaged} damaged frame{'s'[: damaged > 1]}"


def _timings(row: Row) -> str:
    metrics = row["metrics"]
    first, rate = metrics["timings"]["time_to_first_token"], metrics["tokens_per_second"]
    total = metrics["timings"]["end_to_end"]
    said = [
        f"first token {seconds(first)}" if first is not None else "",
        f"{number(rate)} tokens/s" if rate is not None else "",
        f"{seconds(total)} in all" if total is not None else "",
    ]
    return " · ".join(one for one in said if one)
