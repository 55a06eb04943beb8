# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation taken apart: code, commands, links, headings; and how code and commands are tried."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anomalib.cli import AnomalibCLI

from anomalib_cdd.__main__ import main

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("anomalib_cdd/models/*/README.md"))
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
PAGES = ["README.md", *sorted(p.name for p in ROOT.glob("C*.md")), "experiments/README.md", *DOCS, *MODELS]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```\n", "", read(page), flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """What a page tells people to type, without its remarks."""
    lines = "".join(blocks(page, "console")).splitlines()
    return [shlex.join(shlex.split(line[2:], comments=True)) for line in lines if line.startswith("$ ")]


def inline_commands(page: str) -> list[str]:
    """Commands in the text, such as `anomalib train --model.help anomalib_cdd.Cdd`."""
    return [
        " ".join(found.split()) for found in re.findall(r"`((?:anomalib|anomalib-cdd|python -m)\s[^`]*)`", prose(page))
    ]


def links(page: str) -> list[str]:
    """Relative links, each with its anchor if it has one."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(next(name for n in range(99) if (name := f"{slug}-{n}" if n else slug) not in found))
    return found


def run(code: str, names: dict[str, Any], **instead: str) -> None:
    """Run a page's own code with something small in place of what it names."""
    for told, here in instead.items():
        assert told in code
        code = code.replace(told, here)
    exec(code, names)  # noqa: S102


def type_in(command: str, *more: str) -> None:
    """Run a command of anomalib or of this package here, with ``more`` options; of others see that they exist."""
    program, *arguments = shlex.split(command)
    if program == "anomalib-cdd":
        main([*arguments, *more])
    elif program == "anomalib":
        AnomalibCLI(args=[*arguments, *more])
    elif program == "pip":
        _check_extras(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", read("Makefile"), flags=re.MULTILINE)
        assert {word for word in arguments if "=" not in word and word != "..."} <= set(targets), command
    elif program == "python":
        _check_module(arguments)
    else:
        assert program in {"git", "cd", "bash"}, f"nobody tries {command}"


def parse(command: str) -> None:
    """See that a command would start: that there are such options. Nothing is trained."""
    trains = re.match(r"anomalib(-cdd)? train ", command) and ".help" not in command
    with _ends_well():
        type_in(command, *(["--print_config"] if trains else []))


@contextmanager
def _ends_well() -> Iterator[None]:
    """Let a command line end the process as it does after help."""
    try:
        yield
    except SystemExit as ended:
        if ended.code:
            raise


def _check_extras(arguments: list[str]) -> None:
    section = read("pyproject.toml").split("[project.optional-dependencies]")[1].split("\n[")[0]
    known = re.findall(r"^(\w+) = ", section, flags=re.MULTILINE)
    for extras in re.findall(r"\[(.*?)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(known), extras


def _check_module(arguments: list[str]) -> None:
    assert arguments[0] == "-m"
    found = find_spec(arguments[1])
    assert found is not None, arguments[1]
    assert found.origin is not None
    source = Path(found.origin)
    texts = [source] if source.name != "__init__.py" else [source.with_name("__main__.py")]
    for option in (word for word in arguments if word.startswith("--")):
        assert any(f'"{option}"' in text.read_text(encoding="utf-8") for text in texts), (arguments[1], option)


def arguments_of(kind: type) -> dict[str, Any]:
    """Names and defaults of a class's arguments, those of its bases too where it passes them on."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base):
            found |= {name: value.default for name, value in inspect.signature(base).parameters.items()}
    return found
