# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a configuration with many nested classes in a third of the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# jsonargparse 4.49 keeps the parsers of classes by itself; anomalib 2.7 takes 4.46 at most
from jsonargparse._common import nested_links, parent_parser
from jsonargparse._typehints import ActionTypeHint

_MADE: dict[Any, Any] = {}


@contextmanager
def kept_parsers() -> Iterator[None]:
    """Let jsonargparse make the parser of a nested class once, rather than each time it looks at a value of it."""
    make = ActionTypeHint.get_class_parser

    def once(val_class: Any, sub_add_kwargs: Any = None, skip_args: Any = None) -> Any:
        parent: Any = parent_parser.get()
        options = repr((sub_add_kwargs, skip_args, nested_links.get(), parent.parser_mode))
        key = (val_class, type(parent), options)
        if key not in _MADE:
            _MADE[key] = make(val_class, sub_add_kwargs, skip_args)
        _MADE[key].logger = parent.logger
        return _MADE[key]

    ActionTypeHint.get_class_parser = staticmethod(once)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActionTypeHint.get_class_parser = staticmethod(make)  # type: ignore[method-assign]
