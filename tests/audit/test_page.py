# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""The audit's page in a real browser: what a person sees, marks and downloads, by mouse and by keyboard."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from anomalib_cdd.audit.page import AuditImage, write_page
from anomalib_cdd.data.manifest import read_exclude_list, read_review

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "Page"]
NASTY_NAMES = [
    "</script><script>window.pwned = 1</script>.png",
    "<!--<script>.png",
    "<img src=x onerror='window.pwned = 1'>.png",
    'good/"quoted", twice ""2"".png',
    "it's.png",
    "a,b;c\td.png",
    "line\nbreak.png",
    "return\r\nof the carriage\r.png",
    "&lt;&amp;.png",
    "{{ 7 * 7 }}${7 * 7}.png",
    "Übergröße/写真 🙂.png",
    "\u2028separator\u202egnp.png",
    " spaces \\ backslash.png",
]


def encode(colour: tuple[int, int, int], kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, kind)
    return buffer.getvalue()


COLOURS = (255, 0, 0), (0, 255, 0)
GREY, RED = encode((120, 120, 120)), encode((200, 40, 40), "WEBP")


def make_images(n: int = 12) -> list[AuditImage]:
    """Image i has score i / 10; names count the other way round; the upper half has been injected."""
    return [
        AuditImage(
            name=f"good/{n - i:04d}.png",
            score=i / 10,
            image=GREY,
            heat_map=RED,
            curve=[0.9, math.nan, 0.5, i / n],
            is_noise=i >= n / 2,
        )
        for i in range(n)
    ]


def named(names: list[str]) -> list[AuditImage]:
    return [AuditImage(name=name, score=-float(i), image=GREY, heat_map=RED) for i, name in enumerate(names)]


def names(page: Page, selector: str = ".card") -> list[str]:
    return page.locator(f"{selector} .name bdi").all_text_contents()


def move_slider(page: Page, cut: float) -> None:
    page.locator("#slider").evaluate("(e, cut) => { e.value = cut; e.dispatchEvent(new Event('input')); }", cut)


def excluded(page: Page) -> list[str]:
    """The rows of the downloaded exclude list."""
    with page.expect_download() as event:
        page.get_by_role("button", name="Download exclude list").click()
    assert event.value.suggested_filename == "exclude.csv"
    content = Path(event.value.path()).read_bytes().decode("utf-8")
    header, *rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    assert header == ["image_path"]
    assert all(len(row) == 1 for row in rows)
    return [row[0] for row in rows]


def saved(page: Page, path: Path) -> dict[str, str]:
    """The review that the page saves."""
    with page.expect_download() as event:
        page.get_by_role("button", name="Save review").click()
    assert event.value.suggested_filename == "review.json"
    event.value.save_as(path)
    return read_review(path).images


def mark(page: Page, verdict: str, name: str) -> None:
    page.get_by_role("button", name=f"{verdict}: {name}", exact=True).click()


def wait_until(page: Page, condition: str, arg: object = None) -> None:
    """Wait until JavaScript says so. Playwright's own ``wait_for_function`` evaluates strings in the page's later
    tasks, which its Content Security Policy forbids: it fails wherever the first look is too early.
    """
    end = time.monotonic() + 30
    while not page.evaluate(condition, arg):
        assert time.monotonic() < end, f"not within 30 seconds: {condition}"
        page.wait_for_timeout(20)


def wait_for_message(page: Page, text: str) -> None:
    page.locator("#message").filter(has_text=text).wait_for()


def counts(page: Page) -> str:
    return page.locator("#counts").text_content()


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.querySelector('.name bdi')?.textContent")


def test_cards_say_what_is_known_of_each_image_the_most_suspicious_first(open_page: OpenPage) -> None:
    images = make_images()
    page = open_page(
        images[6:] + images[:6],
        title="</title><script>window.pwned = 1</script> & co",
        content={"notes": ['of "today"']},
    )
    assert names(page) == [image.name for image in reversed(images)]
    assert page.locator("h1").text_content() == page.title() == "</title><script>window.pwned = 1</script> & co"
    assert page.get_by_text('of "today"').is_visible()
    first, last = page.locator(".card").first, page.locator(".card").last
    assert first.locator(".rank").text_content() == "#1"
    assert float(first.locator(".score").text_content()) == pytest.approx(1.1)
    assert first.get_by_text("injected").is_visible()
    assert not last.get_by_text("injected").is_visible()
    # a gap where an epoch has no value: the pen is lifted once
    assert first.locator(".sparkline path").get_attribute("d").count("M") == 2
    pictures = first.locator("img")
    assert pictures.count() == 2
    wait_until(page, "[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth === 16)")
    # nothing is marked until a cut is set
    assert page.locator("#above-count").text_content() == "0 of 12 above the cut"
    assert page.locator(".card.above").count() == 0


def test_what_is_not_known_is_not_shown(open_page: OpenPage) -> None:
    page = open_page([AuditImage(name=f"{i}.png", score=0.5, image=GREY, heat_map=None) for i in range(3)])
    assert names(page) == ["0.png", "1.png", "2.png"]  # equal scores keep their order
    assert page.locator(".card").first.locator("img").count() == 1
    for hidden in (
        ".sparkline:visible",
        ".badges .injected",
        "#legend:visible",
        "#heat-maps-switch:visible",
        "#flag-field:visible",
    ):
        assert page.locator(hidden).count() == 0
    page.locator(".pictures").first.click()
    assert page.locator("#viewer img:visible").count() == 1


def test_a_page_opens_at_the_given_cut(open_page: OpenPage) -> None:
    page = open_page(make_images(), cut=0.8)
    assert names(page, ".card.above") == [
        "good/0001.png",
        "good/0002.png",
        "good/0003.png",
    ]  # an equal score is not above
    assert page.locator("#above-count").text_content() == "3 of 12 above the cut"
    assert page.locator("#above-injected").text_content() == "(3 of 6 injected)"


def test_sorting(open_page: OpenPage) -> None:
    images = [*make_images(), AuditImage(name="good/5b.png", score=0.35, image=GREY, heat_map=RED)]
    page = open_page(images)
    by_score = [image.name for image in sorted(images, key=lambda image: image.score)]
    page.get_by_label("Sort by").select_option("Least suspicious first")
    assert names(page) == by_score
    page.get_by_label("Sort by").select_option("Name")
    numbered = [f"good/{i:04d}.png" for i in range(1, 13)]
    assert names(page) == [*numbered[:5], "good/5b.png", *numbered[5:]]
    page.get_by_label("Sort by").select_option("Most suspicious first")
    assert names(page) == by_score[::-1]


def test_search_and_filter_narrow_what_is_shown_and_keep_the_selection(open_page: OpenPage) -> None:
    page = open_page(named(["good/Alpha.png", "good/beta.png", "bad/ALPHABET.png", "bad/gamma.png"]), cut=-1.5)
    shown = page.locator("#shown")
    assert shown.text_content() == "4 of 4 shown"
    mark(page, "Bad", "good/Alpha.png")
    mark(page, "Bad", "bad/gamma.png")
    mark(page, "Good", "good/beta.png")
    page.get_by_role("searchbox").fill("alpha")
    assert names(page) == ["good/Alpha.png", "bad/ALPHABET.png"]
    assert shown.text_content() == "2 of 4 shown"
    page.get_by_text("Above the cut", exact=True).click()
    assert names(page) == ["good/Alpha.png"]
    page.get_by_role("searchbox").fill("nothing")
    assert page.get_by_text("No image matches.").is_visible()
    assert shown.text_content() == "0 of 4 shown"
    page.get_by_role("searchbox").fill("")
    assert names(page) == ["good/Alpha.png", "good/beta.png"]
    move_slider(page, -0.5)
    assert names(page) == ["good/Alpha.png"]
    page.get_by_text("Bad", exact=True).first.click()
    page.get_by_label("Sort by").select_option("Name")
    assert names(page) == ["bad/gamma.png", "good/Alpha.png"]
    assert excluded(page) == ["good/Alpha.png", "bad/gamma.png"]  # most suspicious first


def test_the_slider_marks_exactly_the_images_above_the_cut(open_page: OpenPage) -> None:
    images = make_images()
    page = open_page(images)
    for cut, n_above in [(-1, 12), (0.0, 11), (0.45, 7), (0.6, 5), (1.1, 0), (9, 0)]:
        move_slider(page, cut)
        assert names(page, ".card.above") == [image.name for image in reversed(images) if image.score > cut]
        assert page.locator(".badges .above").count() == n_above
        assert page.locator("#above-count").text_content() == f"{n_above} of 12 above the cut"


def test_a_cut_can_be_typed_and_set_in_the_histogram(open_page: OpenPage) -> None:
    page = open_page(make_images())
    page.get_by_label("Cut", exact=True).fill("0.95")
    page.keyboard.press("Tab")
    assert page.locator("#above-count").text_content() == "2 of 12 above the cut"
    box = page.locator("#histogram").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 10)  # the middle of the range: 0.55
    assert page.locator("#above-count").text_content() == "6 of 12 above the cut"
    assert float(page.locator("#slider").input_value()) == pytest.approx(0.55, abs=0.01)
    line = page.locator("#histogram .cut").bounding_box()
    assert line["x"] + line["width"] / 2 == pytest.approx(box["x"] + box["width"] / 2, abs=2)


def test_the_bar_of_an_image_at_the_cut_stands_outside_what_is_above(open_page: OpenPage) -> None:
    images = make_images()
    scores = sorted({image.score for image in images})
    for cut, above in ((scores[-4], 3), (scores[-1], 0), (scores[0] - 1, 12)):
        page = open_page(images, cut=cut)
        assert page.locator("#above-count").text_content() == f"{above} of 12 above the cut"
        region = page.locator("#histogram .region").bounding_box() or {"x": page.viewport_size["width"]}
        bars = [bar.bounding_box() for bar in page.locator("#histogram .injected, #histogram .other").all()]
        inside = [bar for bar in bars if bar["x"] + bar["width"] / 2 > region["x"]]
        assert len(inside) == len({score for score in scores if score > cut})


def test_the_histogram_stacks_injected_images_in_a_colour_of_their_own(open_page: OpenPage) -> None:
    page = open_page(make_images())
    assert page.locator("#histogram .injected").count() == 6
    assert page.locator("#histogram .other").count() == 6
    assert page.get_by_text("other").is_visible()
    fills = {
        page.locator(f"#histogram .{kind}").first.evaluate("e => getComputedStyle(e).fill")
        for kind in ("injected", "other")
    }
    assert len(fills) == 2


def test_all_above_the_cut_are_downloaded_and_their_names_do_no_harm(open_page: OpenPage) -> None:
    page = open_page(named([*NASTY_NAMES, "harmless.png"]))
    download = page.get_by_role("button", name="Download exclude list")
    assert download.is_disabled()
    assert names(page) == [*NASTY_NAMES, "harmless.png"]
    move_slider(page, -len(NASTY_NAMES) + 0.5)
    page.get_by_role("button", name="Mark all above the cut as bad").click()
    assert counts(page) == f"{len(NASTY_NAMES)} bad, 0 good, 1 unseen"
    assert excluded(page) == NASTY_NAMES
    page.locator(".pictures").first.click()
    assert page.locator("#viewer-name").text_content() == NASTY_NAMES[0]
    page.keyboard.press("Escape")
    assert page.evaluate("window.pwned") is None
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear").click()
    assert download.is_disabled()


def test_the_keyboard_is_enough(open_page: OpenPage) -> None:
    page = open_page(make_images(40))
    order = names(page)[:20]
    columns = len(page.locator("#grid").evaluate("e => getComputedStyle(e).gridTemplateColumns").split())
    assert columns > 1
    page.keyboard.press("/")
    assert page.locator("#search").evaluate("e => e === document.activeElement")
    page.keyboard.type("a/b")  # a slash in a search is a slash
    assert page.locator("#search").input_value() == "a/b"
    page.locator("#search").fill("")
    for _ in range(4):  # the filter, the sort control, the heat maps, the first card
        page.keyboard.press("Tab")
    assert focused(page) == order[0]
    assert page.locator(".card:focus").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    steps = [("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0), ("ArrowUp", 0)]
    for key, place in steps:
        page.keyboard.press(key)
        assert focused(page) == order[place]
    page.keyboard.press("Space")
    page.keyboard.press("End")
    assert focused(page) == "good/0040.png"
    page.keyboard.press("Space")
    assert excluded(page) == ["good/0001.png", "good/0040.png"]


def test_the_larger_view_walks_through_what_is_shown(open_page: OpenPage) -> None:
    page = open_page(make_images())
    order = names(page)
    viewer = page.locator("#viewer")
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    assert viewer.is_visible()
    left, right = (page.locator(f"#viewer-{picture}").bounding_box() for picture in ("image", "heat-map"))
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    shown = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowRight", "b", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        shown.append(page.locator("#viewer-name").text_content())
    assert shown == [order[i] for i in (0, 1, 2, 3, 2, 1)]  # a verdict goes on to the next
    page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")
    # a dialog tells that it was closed once it is gone from the screen: the focus follows a moment later
    wait_until(page, "name => document.activeElement.querySelector('.name bdi')?.textContent === name", order[1])
    assert excluded(page) == [order[2]]
    # taking a verdict back in the larger view of the bad images does not pull the image away
    page.get_by_text("Bad", exact=True).first.click()
    page.locator(".pictures").first.click()
    page.keyboard.press("u")
    assert page.locator("#viewer-name").text_content() == order[2]
    page.keyboard.press("b")
    page.keyboard.press("Escape")
    assert names(page) == [order[2]]


@pytest.mark.parametrize("name", ["#1 100 % of it?.png", "Übergröße/写真 🙂.JPG"])
def test_the_larger_view_shows_the_file_itself(open_page: OpenPage, tmp_path: Path, name: str) -> None:
    """Sixty times as wide as its thumbnail; of a file that browsers do not read, the thumbnail."""
    folder = tmp_path / "my parts"
    for each in (name, "slow.tiff"):
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (960, 640)).save(folder / each)
    page = open_page(named([name, "slow.tiff"]), content={"files": folder.as_uri()})
    page.locator(".pictures").first.click()
    width = "document.getElementById('viewer-image').naturalWidth"
    wait_until(page, f"() => {width} === 960")
    page.keyboard.press("ArrowRight")
    wait_until(page, f"() => {width} === 16")
    page.keyboard.press("ArrowLeft")
    wait_until(page, f"() => {width} === 960")


def test_a_phone_shows_everything_without_scrolling_sideways(open_page: OpenPage) -> None:
    images = [*make_images(), *named(["x" * 120 + ".png", "long words " * 20])]
    page = open_page(images, cut=0.5, title="T" * 80, viewport={"width": 360, "height": 740}, has_touch=True)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    too_small = """[...document.querySelectorAll('button, select, .button, input[type=search], input[type=range]')]
        .filter(e => e.offsetParent && Math.min(e.offsetWidth, e.offsetHeight) < 40).map(e => e.outerHTML)"""
    assert page.evaluate(too_small) == []
    page.locator(".pictures").first.tap()
    assert page.locator("#viewer-heat-map").is_visible()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert page.evaluate(too_small) == []


def test_a_thousand_embedded_images_stay_fluid(open_page: OpenPage) -> None:
    page = open_page(make_images(1000))
    n_loaded = "document.querySelectorAll('img[src]').length"
    milliseconds = page.evaluate(
        """() => {
            const slider = document.getElementById('slider');
            const times = [];
            for (let i = 0; i <= 20; i += 1) {
                slider.value = 5 * i;
                const start = performance.now();
                slider.dispatchEvent(new Event('input'));
                times.push(performance.now() - start);
            }
            return Math.max(...times);
        }"""
    )
    assert milliseconds < 1000
    for share in (0, 0.3, 0.9, 1):
        page.evaluate("share => scrollTo(0, share * document.body.scrollHeight)", share)
        wait_until(
            page,
            """() => {
            const boxes = [...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect());
            return Math.min(...boxes.map(box => box.top)) <= 500 && Math.max(...boxes.map(box => box.bottom)) >= 500;
        }""",
        )
        assert 0 < page.evaluate(n_loaded) < 300
    assert names(page)[-1] == "good/1000.png"
    page.get_by_role("searchbox").fill("0123")
    assert names(page) == ["good/0123.png"]


def test_the_focus_follows_the_window(open_page: OpenPage) -> None:
    page = open_page(make_images(900))
    page.locator(".card").first.focus()
    page.mouse.move(600, 700)
    page.mouse.wheel(0, 8000)
    wait_until(page, "!document.querySelector('#grid').textContent.includes('good/0001.png')")
    at = int(focused(page)[5:9])
    page.keyboard.press("ArrowRight")
    assert int(focused(page)[5:9]) == at + 1
    assert page.locator(".card:focus").evaluate("e => e.getBoundingClientRect().top") >= 0


def test_paper_gets_every_image_that_is_shown(open_page: OpenPage) -> None:
    page = open_page(make_images(400))
    assert page.locator(".card").count() < 100
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".card").count() == 400
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".card").count() < 100


def test_nothing_can_be_loaded_from_elsewhere(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", make_images(), title="Tiles")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_a_finite_number_is_refused(tmp_path: Path, score: float) -> None:
    images = [*make_images(), AuditImage(name="odd.png", score=score, image=GREY, heat_map=None)]
    with pytest.raises(ValueError, match=r"odd\.png"):
        write_page(tmp_path / "index.html", images, title="Tiles")
    with pytest.raises(ValueError, match="cut"):
        write_page(tmp_path / "index.html", make_images(), title="Tiles", cut=score)
    assert list(tmp_path.iterdir()) == []


def test_no_images_unknown_formats_and_names_that_cannot_be_listed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        write_page(tmp_path / "index.html", [], title="Tiles")
    with pytest.raises(ValueError, match=r"a\.png.*JPEG"):
        write_page(tmp_path / "index.html", [AuditImage("a.png", 0.0, b"not an image", None)], title="Tiles")
    with pytest.raises(ValueError, match=r"rename the file"):
        write_page(tmp_path / "index.html", [AuditImage("\udcff.png", 0.0, GREY, None)], title="Tiles")


def test_verdicts_by_key_go_on_to_the_next_and_a_second_one_takes_it_back(open_page: OpenPage) -> None:
    page = open_page(make_images())
    order = names(page)
    page.locator(".card").first.focus()
    for key in ("b", "g", "b"):
        page.keyboard.press(key)
    assert focused(page) == order[3]
    assert counts(page) == "2 bad, 1 good, 9 unseen"
    assert excluded(page) == [order[0], order[2]]
    page.locator(".card").first.focus()
    page.keyboard.press("b")
    assert focused(page) == order[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("u")
    assert counts(page) == "1 bad, 0 good, 11 unseen"
    page.get_by_text("Unseen", exact=True).click()
    page.locator(".card").first.focus()
    page.keyboard.press("g")  # gone from what is shown, the next is in its place
    assert focused(page) == order[1]


def test_what_is_marked_good_is_not_marked_bad_with_all_above_the_cut(open_page: OpenPage) -> None:
    page = open_page(make_images(), cut=0.75)
    order = names(page)
    mark(page, "Good", order[1])
    page.get_by_role("button", name="Mark all above the cut as bad").click()
    assert excluded(page) == [order[0], order[2], order[3]]


def test_a_review_survives_as_a_file_and_as_a_draft(open_page: OpenPage, tmp_path: Path) -> None:
    images = make_images()
    page = open_page(images)
    order = names(page)
    mark(page, "Bad", order[0])
    mark(page, "Good", order[1])
    page.wait_for_timeout(400)
    page.reload()
    assert counts(page) == "1 bad, 1 good, 10 unseen"
    assert "not saved yet" in page.locator("#message").text_content()
    file = tmp_path / "saved" / "review.json"
    assert saved(page, file) == {order[0]: "bad", order[1]: "good"}
    assert read_exclude_list(file) == {order[0]}  # what `exclude` takes
    # nobody has said that the file was kept: its download may have been cancelled
    page.reload()
    assert counts(page) == "1 bad, 1 good, 10 unseen"
    assert "was saved from this browser" in page.locator("#message").text_content()
    mark(page, "Bad", order[2])
    page.wait_for_timeout(400)
    page.reload()
    assert page.locator("#message").text_content() == "1 images reviewed in this browser, not saved yet."
    assert saved(page, tmp_path / "second.json") == {order[0]: "bad", order[1]: "good", order[2]: "bad"}
    # by the file picker
    page = open_page(images)
    page.locator("#load-file").set_input_files(file)
    wait_for_message(page, "review.json: 2 images")
    assert counts(page) == "1 bad, 1 good, 10 unseen"
    # in a page that was written with it
    page = open_page(images, content={"review": {order[0]: "bad", order[1]: "good", "gone.png": "bad"}})
    assert counts(page) == "1 bad, 1 good, 10 unseen"
    # what was said of images that are not here is saved again, also by way of a draft
    mark(page, "Good", order[2])
    page.wait_for_timeout(400)
    page.reload()
    assert saved(page, file) == {"gone.png": "bad", order[0]: "bad", order[1]: "good", order[2]: "good"}


def test_a_draft_goes_when_the_page_has_its_review(open_page: OpenPage, tmp_path: Path) -> None:
    images = make_images()
    page = open_page(images)
    order = names(page)
    mark(page, "Bad", order[0])
    saved(page, tmp_path / "review.json")
    page.wait_for_timeout(400)
    review = read_review(tmp_path / "review.json")
    write_page(
        tmp_path / "index.html", images, title="Tiles", review=review.images, reviewed_at=str(review.saved)
    )  # fmt: skip
    page.reload()
    assert counts(page) == "1 bad, 0 good, 11 unseen"
    assert page.locator("#message").text_content() == ""
    assert page.evaluate("localStorage.length") == 0
    # what is marked from here on is kept again
    mark(page, "Good", order[0])
    page.wait_for_timeout(400)
    page.reload()
    assert counts(page) == "0 bad, 1 good, 11 unseen"


def test_a_verdict_that_was_taken_back_elsewhere_stays_so(open_page: OpenPage, tmp_path: Path) -> None:
    images = make_images()
    page = open_page(images)
    order = names(page)
    mark(page, "Bad", order[0])
    saved(page, tmp_path / "review.json")
    page.wait_for_timeout(400)
    # another browser takes it back and saves later; the next page is written with that file
    write_page(
        tmp_path / "index.html", images, title="Tiles", review={order[1]: "good"}, reviewed_at="2100-01-01T00:00:00Z"
    )
    page.reload()
    assert counts(page) == "0 bad, 1 good, 11 unseen"


def test_a_draft_and_a_review_are_joined_and_the_newer_word_holds(open_page: OpenPage, tmp_path: Path) -> None:
    images = make_images()
    page = open_page(images)
    order = names(page)
    for verdict, name in zip(("Bad", "Bad", "Good"), order, strict=False):
        mark(page, verdict, name)
    page.wait_for_timeout(400)
    review = {order[1]: "good", order[3]: "bad"}
    for reviewed_at, counted in (("2000-01-01T00:00:00Z", "3 bad, 1 good"), ("2100-01-01T00:00:00Z", "2 bad, 2 good")):
        write_page(tmp_path / "index.html", images, title="Tiles", review=review, reviewed_at=reviewed_at)
        page.reload()
        assert counts(page).startswith(counted)
    assert page.locator("#message").text_content() == "2 images reviewed in this browser, not saved yet."
    # a clock that is behind that of the file
    mark(page, "Bad", order[1])
    page.wait_for_timeout(400)
    page.reload()
    assert saved(page, tmp_path / "review.json") == {
        order[0]: "bad", order[1]: "bad", order[2]: "good", order[3]: "bad"
    }  # fmt: skip
    # what is said after a save is later than the save, also by such a clock
    mark(page, "Good", order[0])
    page.wait_for_timeout(400)
    written = json.loads((tmp_path / "review.json").read_text())
    write_page(tmp_path / "index.html", images, title="Tiles", review=written["images"], reviewed_at=written["saved"])
    page.reload()
    assert counts(page).startswith("2 bad, 2 good")


def test_a_draft_is_of_a_folder_whatever_images_come_and_go(open_page: OpenPage, tmp_path: Path) -> None:
    images = make_images()
    page = open_page(images, content={"root": "/data/a"})
    first, second, *_ = names(page)
    mark(page, "Bad", first)
    mark(page, "Bad", second)
    page.wait_for_timeout(400)
    others = [image for image in images if image.name != second] + named(["new.png"])
    write_page(tmp_path / "index.html", others, title="Tiles", root="/data/a")
    page.reload()
    assert counts(page) == "1 bad, 0 good, 11 unseen"
    assert saved(page, tmp_path / "review.json") == {first: "bad", second: "bad"}
    assert read_review(tmp_path / "review.json").root == "/data/a"
    # images of another folder have the same names
    write_page(tmp_path / "index.html", images, title="Tiles", root="/data/b")
    page.reload()
    assert counts(page) == "0 bad, 0 good, 12 unseen"
    questions = []
    page.once("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
    page.locator("#load-file").set_input_files(tmp_path / "review.json")
    page.wait_for_timeout(400)
    assert "is a review of /data/a, this page is of /data/b" in questions[0]
    assert counts(page) == "0 bad, 0 good, 12 unseen"


def test_two_tabs_of_a_page_keep_the_marks_of_both(open_page: OpenPage) -> None:
    page = open_page(make_images())
    order = names(page)
    with page.expect_popup() as opened:
        page.evaluate("void open(location.href)")
    other = opened.value
    mark(page, "Bad", order[0])
    mark(other, "Good", order[1])
    other.locator("#counts").filter(has_text="1 bad, 1 good").wait_for()
    page.locator("#counts").filter(has_text="1 bad, 1 good").wait_for()
    page.wait_for_timeout(400)
    page.reload()
    assert counts(page) == "1 bad, 1 good, 10 unseen"
    other.close()


def test_a_cleared_review_is_saved_without_any_verdict(open_page: OpenPage, tmp_path: Path) -> None:
    images = make_images()
    page = open_page(images, content={"review": {images[0].name: "bad", "gone.png": "bad"}})
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear").click()
    assert counts(page) == "0 bad, 0 good, 12 unseen"
    assert saved(page, tmp_path / "review.json") == {}
    page.wait_for_timeout(400)
    page.reload()
    assert counts(page) == "0 bad, 0 good, 12 unseen"
    assert read_exclude_list(tmp_path / "review.json") == set()


def test_a_draft_outlives_another_ranking(open_page: OpenPage, tmp_path: Path) -> None:
    images = make_images()
    page = open_page(images)
    first, *_ = names(page)
    mark(page, "Bad", first)
    page.wait_for_timeout(400)
    write_page(tmp_path / "index.html", [replace(image, score=-image.score) for image in images], title="Others")
    page.reload()
    assert names(page)[-1] == first
    assert counts(page) == "1 bad, 0 good, 11 unseen"


def test_a_review_can_be_dropped_and_anything_else_is_refused(open_page: OpenPage) -> None:
    page = open_page(make_images())
    drop = """([name, text]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([text], name));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, ["mine.json", '{"images": {"good/0003.png": "bad", "other.png": "good"}}'])
    wait_for_message(page, "1 others are not on this page")
    assert counts(page) == "1 bad, 0 good, 11 unseen"
    for text in ("no JSON", "[]", "null", '{"images": null}'):
        page.evaluate(drop, ["odd.json", "{}"])
        page.evaluate(drop, ["bad.json", text])
        wait_for_message(page, "bad.json is no review")
    assert counts(page) == "1 bad, 0 good, 11 unseen"


def test_near_duplicates_are_one_card_with_one_verdict(open_page: OpenPage) -> None:
    images = make_images()
    page = open_page(images, content={"groups": [[11, 3, 0], [7, 6]]})
    assert page.locator(".card").count() == 9
    assert page.locator("#shown").text_content() == "9 of 9 shown (12 images)"
    assert page.locator(".card").first.get_by_text("3 alike").is_visible()
    mark(page, "Bad", images[11].name)
    assert excluded(page) == [images[11].name, images[3].name, images[0].name]
    page.get_by_role("searchbox").fill(images[0].name)  # a member's name finds the group
    assert names(page) == [images[11].name]
    page.get_by_role("searchbox").fill("")
    page.locator(".pictures").first.click()
    members = page.locator("#viewer-members button")
    assert members.count() == 3
    members.nth(2).click()
    assert page.locator("#viewer-name").text_content() == images[0].name
    page.keyboard.press("Escape")
    page.get_by_label("Group near-duplicates").uncheck()
    assert page.locator(".card").count() == 12
    mark(page, "Bad", images[3].name)  # takes it back for one alone
    assert counts(page) == "2 bad, 0 good, 10 unseen"
    page.get_by_label("Flags").select_option("near-duplicates")
    assert set(names(page)) == {images[i].name for i in (11, 3, 0, 7, 6)}


def test_flags_are_shown_and_narrow_what_is_shown(open_page: OpenPage) -> None:
    images = [
        AuditImage(f"{i}.png", -float(i), GREY, RED, flags=flagged, percentile=99.5 - i)
        for i, flagged in enumerate((["blurred"], [], ["dark", "blurred"], []))
    ]
    page = open_page(images)
    assert page.locator("#flag option").all_text_contents() == ["Any", "blurred (2)", "dark (1)"]
    page.get_by_label("Flags").select_option("blurred")
    assert names(page) == ["0.png", "2.png"]
    assert page.locator(".card").last.locator(".badges").text_content() == "darkblurred"
    assert page.locator(".card").first.locator(".percentile").text_content() == "p99.5"


def test_heat_maps_can_be_hidden(open_page: OpenPage) -> None:
    page = open_page(make_images())
    assert page.locator(".pictures img:visible").count() == 24
    page.get_by_label("Heat maps").uncheck()
    assert page.locator(".pictures img:visible").count() == 12


def test_fifty_thousand_images_open_in_two_seconds_and_scroll(open_page: OpenPage, tmp_path: Path) -> None:
    curve = [0.5] * 100
    images = [AuditImage(f"good/{i:06}.png", 50_000.0 - i, GREY, RED, curve=curve) for i in range(50_000)]
    groups = [[i, i + 1, i + 2] for i in range(0, 3000, 30)]
    page = open_page(images, cut=49_000, content={"groups": groups}, wait_until="commit")
    seconds = []
    for _ in range(3):  # the quickest: another process may have the processor
        page.wait_for_selector(".card img")
        wait_until(page, "performance.timing.domComplete > 0")
        seconds.append(page.evaluate("performance.timing.domComplete - performance.timing.navigationStart") / 1000)
        page.reload(wait_until="commit")
    assert 0 < min(seconds) < 2
    page.wait_for_selector(".card img")
    assert len(list((tmp_path / "thumbnails").iterdir())) < 2000
    assert (tmp_path / "index.html").stat().st_size < 100_000
    for share in (0, 0.3, 0.9, 1):
        page.evaluate("share => scrollTo(0, share * document.body.scrollHeight)", share)
        wait_until(
            page,
            """() => {
            const boxes = [...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect());
            return Math.min(...boxes.map(box => box.top)) <= 700 && Math.max(...boxes.map(box => box.bottom)) >= 500
                && document.querySelectorAll('.card img').length === 2 * boxes.length
                && [...document.querySelectorAll('.card img')].every(image => image.complete && image.naturalWidth);
        }""",
        )
        assert 0 < page.locator("img[src]").count() < 300
        wait_until(page, "waiting.size === 0")  # it would keep every picture that was ever shown
    assert names(page)[-1] == "good/049999.png"
    mark(page, "Bad", "good/049999.png")
    page.get_by_role("searchbox").fill("good/04999")
    assert page.locator(".card").count() == 10
    assert excluded(page) == ["good/049999.png"]


def test_a_page_without_its_folder_says_which_is_missing(browser: Browser, tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", make_images(1001), title="Tiles")
    shutil.rmtree(tmp_path / "thumbnails")
    page = browser.new_page()
    errors: list[object] = []
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108  # Playwright marks what it is given
    page.goto((tmp_path / "index.html").as_uri())
    assert "The folder thumbnails is missing beside this page" in page.locator("body").inner_text()
    assert not page.locator("main").is_visible()
    assert errors == []
    page.close()


def test_folders_that_a_kill_has_left_are_swept(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = [tmp_path / f".thumbnails.{kind}{int(ended.stdout)}" for kind in ("", "old.")]
    alive = tmp_path / f".thumbnails.{os.getppid()}"
    for folder in (*left, alive):
        folder.mkdir()
    write_page(tmp_path / "index.html", make_images(1001), title="Tiles")
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "thumbnails", alive.name}


def test_a_smaller_set_takes_a_large_ones_place(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", make_images(1001), title="Tiles")
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "thumbnails"}
    write_page(tmp_path / "index.html", make_images(1001), title="Tiles")
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "thumbnails"}
    write_page(tmp_path / "index.html", make_images(1000), title="Tiles")
    assert {path.name for path in tmp_path.iterdir()} == {"index.html"}


@pytest.mark.parametrize("count", [1, 1001])
def test_a_folder_of_the_users_is_left_alone(tmp_path: Path, count: int) -> None:
    mine = tmp_path / "thumbnails" / "mine.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    if count == 1:
        write_page(tmp_path / "index.html", make_images(1), title="Tiles")
    else:
        with pytest.raises(FileExistsError, match="thumbnails is not of an audit page"):
            write_page(tmp_path / "index.html", make_images(count), title="Tiles")
    assert mine.read_bytes() == b"mine"


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "index.html"
    write_page(path, make_images(), title="Old")
    old = path.read_text(encoding="utf-8")

    def write_half(self: Path, text: str, **_: object) -> None:
        with self.open("w", encoding="utf-8") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", write_half)
        with pytest.raises(OSError, match="No space"):
            write_page(path, make_images(), title="New")
    assert path.read_text(encoding="utf-8") == old
    assert list(path.parent.iterdir()) == [path]
    write_page(path, make_images(), title="New")
    assert "<title>New</title>" in path.read_text(encoding="utf-8")


COLOUR_SHOWN = """id => { const canvas = document.createElement("canvas"), image = document.getElementById(id);
    if (!image.hasAttribute("src") || !image.naturalWidth) return "none";
    canvas.getContext("2d").drawImage(image, 0, 0);
    const [red, green] = canvas.getContext("2d").getImageData(0, 0, 1, 1).data;
    return red > green ? "red" : "lime"; }"""


def coloured(n: int, turned: bool = False) -> list[AuditImage]:
    """The first half red, the second lime; the most suspicious first, or last."""
    files, sign = [encode(colour) for colour in COLOURS], 1 if turned else -1
    return [
        AuditImage(name=f"{i:04}.png", score=sign * float(i), image=files[2 * i // n], heat_map=None) for i in range(n)
    ]


def test_a_page_that_another_has_taken_the_place_of_shows_none_of_its_pictures(
    open_page: OpenPage, tmp_path: Path
) -> None:
    """Names, scores and pictures of another audit of the same folder, in another order."""
    page = open_page(coloured(1001))
    write_page(tmp_path / "index.html", coloured(1001, turned=True), title="Tiles")
    page.locator("#sort").select_option("ascending")
    wait_for_message(page, "This page was written anew since it was opened")
    assert page.locator(".card").first.locator("img").count() == 0
    page.reload()
    page.locator(".card img").first.wait_for()
    assert page.locator("#message").text_content() == ""


def test_no_image_is_shown_under_the_name_of_another(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(coloured(1001))
    page.locator(".card img").first.wait_for()
    last = max((tmp_path / "thumbnails").glob("[0-9]*.js"), key=lambda path: int(path.stem))
    last.write_text("")
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    wait_until(page, f"({COLOUR_SHOWN})('viewer-image') === 'red'")
    page.keyboard.press("Escape")
    page.locator("#sort").select_option("ascending")
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#viewer-name").text_content() == "1000.png"
    assert page.evaluate(COLOUR_SHOWN, "viewer-image") == "none"


def test_the_space_bar_on_a_button_does_not_scroll_the_page(open_page: OpenPage) -> None:
    page = open_page(make_images(200))
    count = (
        "window.clicks = 0; document.getElementById('load-file').onclick = () => { window.clicks += 1; return false; }"
    )
    page.evaluate(count)
    page.locator("#load").focus()
    page.keyboard.press("Space")
    page.wait_for_timeout(200)
    assert page.evaluate("window.clicks") > 0
    assert page.evaluate("scrollY") == 0
