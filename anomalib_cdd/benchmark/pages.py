# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown, with its figures beside it, and as one HTML page with its figures in it."""

import base64
import html
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from .report import OVERVIEW_NOTE, READING, TITLE, Report
from .tables import Table, Value

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
NOT_DRAWN = "The figures are drawn when the run ends."


def to_html(report: Report) -> str:
    """Return the report as a page that needs no other file."""
    environment = Environment(
        loader=PackageLoader("anomalib_cdd.benchmark", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embed"] = _data_url
    template = environment.get_template("page.html.j2")
    return template.render(
        report=report, title=TITLE, reading=READING, overview_note=OVERVIEW_NOTE, not_drawn=NOT_DRAWN
    )


def _data_url(path: Path) -> str:
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def to_markdown(report: Report, folder: Path) -> str:
    """Return the report in Markdown.

    Args:
        report: What it says.
        folder: Where it will lie; its figures are linked from there.
    """
    return "\n\n".join(_paragraphs(report, folder)) + "\n"


def _paragraphs(report: Report, folder: Path) -> Iterator[str]:
    yield f"# {TITLE}"
    yield report.state
    yield "\n".join(f"- *{term}*: {text}" for term, text in READING.items())
    if report.overview:
        yield "## Overview"
        yield OVERVIEW_NOTE
        yield from (_table(table, "###") for table in report.overview)
    if report.paper:
        yield "## Beside the paper"
        yield from (_table(table, "###") for table in report.paper)
    for section in report.sections:
        for block in section.blocks:
            yield f"## {_text(block.title)}"
            yield from (_table(table, "###") for table in block.tables)
        for picture in section.pictures:
            link = picture.path.relative_to(folder).as_posix()
            yield f"## {_text(section.title)}: {picture.title.lower()}"
            yield f"![{picture.title}]({link})"
            yield _text(picture.caption)
    if report.sections and not report.are_drawn:
        yield NOT_DRAWN
    if report.failed:
        yield "## Failed"
        yield "\n".join(f"- {_text(cell)}: {_code(error)}" for cell, error in report.failed)
    if report.problems:
        yield "## Not read or drawn"
        yield "\n".join(f"- {_text(problem)}" for problem in report.problems)
    if report.measured_with:
        yield f"Measured with {report.measured_with}."


def _table(table: Table, level: str) -> str:
    lines = [
        f"{level} {_text(table.title)}",
        "",
        "| " + " | ".join(_text(column) for column in table.columns) + " |",
        "|" + "---|" * len(table.columns),
        *("| " + " | ".join(" / ".join(map(_value, cell)) for cell in row) + " |" for row in table.rows),
        *(f"\n{_text(note)}" for note in table.notes),
    ]
    return "\n".join(lines)


def _value(value: Value) -> str:
    text = _text(value.text)
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(value.rank, text)


def _text(text: str) -> str:
    """Keep a name from ending its cell or becoming HTML."""
    return html.escape(text, quote=False).replace("|", "\\|")


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"
