# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The table of a benchmark."""

from typing import Any

HEAD = "| row | what | ours | rival | ratio | of the rounds | aim |\n|---|---|---|---|---|---|---|\n"


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of rows, each as ``bench.json`` has it."""
    lines, notes = [], []
    for name, row in results.items():
        if "error" in row:
            lines.append(f"| {name} | failed: {row['error'][:200]} | | | | | |")
            continue
        for each in row["comparisons"]:
            spread = each["spread"]
            cells = [
                name,
                each["what"],
                _quantity(each["median"], each),
                "" if each["median_rival"] is None else _quantity(each["median_rival"], each),
                "" if each["ratio"] is None else f"{each['ratio']:.3f}",
                "" if spread is None else f"{spread[0]:.3f} to {spread[1]:.3f}",
                "" if each["aim"] is None else f"<= {each['aim']:g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            if each["note"]:
                notes.append(f"- {name}, {each['what']}: {each['note']}")
    machines = sorted({str(row["environment"]) for row in results.values() if "environment" in row})
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join([*notes, *(f"- {machine}" for machine in machines)]) + "\n"


def _quantity(median: float, comparison: dict[str, Any]) -> str:
    """Return a median with its unit; of several images what one takes, and how many a second."""
    if images := comparison["images"]:
        return f"{1000 * median / images:.3g} ms an image, {images / median:.3g} a second"
    return f"{median:.3g} {comparison['unit']}"
