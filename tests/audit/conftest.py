# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""A real browser for the audit's page: Chrome or Debian's Chromium, without a window, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from anomalib_cdd.audit.page import AuditImage, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "Page"]
WINDOW = {"width": 1280, "height": 1400}  # high enough for a dozen cards


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    # Chrome first: Chromium may be Ubuntu's, a snap that cannot read /tmp
    found = [path for name in ("google-chrome", "chromium", "chromium-browser") if (path := shutil.which(name))]
    if not found:
        pytest.skip("No Chrome or Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[OpenPage]:
    """Return a function that writes a page and opens it. At the end: it loaded nothing and reported no error."""
    pages = []
    loaded: list[str] = []
    errors: list[str] = []

    def open_(
        images: list[AuditImage],
        *,
        cut: float | None = None,
        title: str = "Tiles",
        content: dict[str, Any] | None = None,
        **context: Any,
    ) -> Page:
        path = tmp_path / "index.html"
        write_page(path, images, title=title, cut=cut, **(content or {}))
        wait_until = context.pop("wait_until", "load")
        page = browser.new_page(**({"viewport": WINDOW} | context))
        pages.append(page)
        page.set_default_timeout(10_000)
        page.on("request", lambda request: loaded.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri(), wait_until=wait_until)
        return page

    yield open_
    for page in pages:
        page.close()
    allowed = (tmp_path.as_uri(), "data:", "blob:")
    assert [url for url in loaded if not url.startswith(allowed)] == []
    assert errors == []
