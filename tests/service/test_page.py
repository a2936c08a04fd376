"""The page in Chromium: search, failures, keyboard, phone. Against the real service where it only reads,
against `page_stub` where it has to be slow or to fail. Nothing may reach the console or leave this machine.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="the extra dev brings playwright")
pytest.importorskip("fastapi", reason="the extra serve brings fastapi")
pytest.register_assert_rewrite("page_browser", "page_stub")

from page_browser import expect, files, give, needs_chromium, opened, photo, search, titles  # noqa: E402
from page_stub import PAGE, Failure, Told  # noqa: E402

from moonshelf import images  # noqa: E402
from moonshelf.product import ImageRef  # noqa: E402

pytest_plugins = ("page_browser",)
pytestmark = needs_chromium
VIEWS = ("#/search", "#/search?q=bag", "#/product/p00001", "#/duplicates", "#/creatives", "#/catalogue")


# ------------------------------------------------------------------------------- the real service


def test_real_search_filter_and_more_like_this(browser: Any, address: str, shop: Any) -> None:
    wanted, total = shop.products[3], len(shop.products)
    for page in opened(browser, address):
        page.goto("/")
        expect(page.get_by_text(f"{total} products in this catalogue")).to_be_visible()
        search(page, wanted.title)
        first = page.locator(".results .card").first
        expect(first).to_contain_text(wanted.title)
        expect(first).to_contain_text("by words")
        expect(page.get_by_text(re.compile(rf"The best {total} of {total} products"))).to_be_visible()
        expect(first.locator("img")).to_have_js_property("complete", True)
        assert first.locator("img").evaluate("(image) => image.naturalWidth") > 0

        brands = page.get_by_role("form", name="Filters").get_by_role("group", name="Brand")
        brands.get_by_role("checkbox", name=re.compile(f"^{wanted.brand}")).check()
        expect(page.get_by_role("button", name="remove this filter")).to_have_count(1)
        own = [product for product in shop.products if product.brand == wanted.brand]
        expect(page.locator(".results .card")).to_have_count(len(own))
        page.get_by_role("button", name="remove this filter").click()
        expect(page.locator(".results .card")).to_have_count(total)

        categories = page.get_by_role("form", name="Filters").get_by_role("group", name="Category")
        for level, name in enumerate(
            wanted.category, 1
        ):  # down the tree: the narrower takes the wider's place
            categories.get_by_role("checkbox", name=re.compile(rf"^{name}\s?,")).check()
            within = [
                product for product in shop.products if product.category[:level] == wanted.category[:level]
            ]
            expect(page.locator(".results .card")).to_have_count(len(within))
            expect(page.get_by_role("button", name="remove this filter")).to_have_count(1)
        page.get_by_role("button", name="remove this filter").click()
        expect(page.locator(".results .card")).to_have_count(total)

        page.locator(".results .card").first.get_by_role("link", name="More like this").click()
        expect(page.locator(".results .card")).to_have_count(total - 1)
        assert wanted.title not in titles(page)
        page.go_back()
        expect(page.locator(".results .card").first).to_contain_text(wanted.title)


def test_real_search_by_photo_with_reasoning(browser: Any, address: str, shop: Any) -> None:
    wanted = shop.products[5]
    for page in opened(browser, address):
        page.goto("/")
        page.get_by_label("Let the model reason").check()
        page.locator("#photo").set_input_files(
            {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": wanted.images[0].data}
        )
        expect(page.locator(".results .card").first).to_be_visible(timeout=30_000)
        assert "reason=on" in page.url
        place = next(i for i, title in enumerate(titles(page)) if wanted.title in title)
        assert place < 5, f"its own photo finds the product on place {place + 1}"


def test_real_product_duplicates_and_catalogue(browser: Any, address: str, shop: Any) -> None:
    for page in opened(browser, address):
        page.goto(f"/#/product/{shop.products[0].id}")
        expect(page.get_by_role("heading", name=shop.products[0].title)).to_be_visible()
        expect(page.get_by_text("Nothing: it was embedded without reasoning.")).to_be_visible()
        expect(page.locator(".near .card")).to_have_count(6)
        page.get_by_role("link", name="Duplicates").click()
        expect(page.get_by_role("link", name="Variants")).to_contain_text("groups")
        page.get_by_role("link", name="Catalogue", exact=True).click()
        expect(page.get_by_text("The index is up to date.")).to_be_visible()
        expect(page.locator(".tile").first).to_contain_text(str(len(shop.products)))


def test_real_creatives_and_their_plan(browser: Any, address: str, tmp_path: Path) -> None:
    for page in opened(browser, address):
        page.goto("/#/creatives")
        page.locator("#creative-files").set_input_files(files((200, 30, 30), (30, 30, 200)))
        page.get_by_role("button", name="Compare").click()
        expect(page.locator(".verdict-box h2")).to_have_text(re.compile("is preferred|No verdict"))
        expect(page.get_by_text("This judge gives no reasons.")).to_be_visible()
        expect(page.locator(".caveat")).to_contain_text("foretells no click-through rate")
        page.get_by_label("Usual click rate").fill("2")
        with page.expect_download() as down:
            page.get_by_role("button", name="Test plan").click()
        down.value.save_as(tmp_path / "plan.md")
        assert "2.00%" in (tmp_path / "plan.md").read_text()


# -------------------------------------------------------------------------------------- searching


def test_the_hash_holds_the_search(page: Any, state: Told) -> None:
    page.goto("/#/search?q=bag&price_max=90&mode=text&reason=on")
    expect(page.locator(".results .card").first).to_be_visible()
    asked = state.searches[-1]
    assert (asked.text, asked.filters.price_max, asked.mode, asked.reason) == ("bag", 90, "text", "on")
    assert page.get_by_role("searchbox").input_value() == "bag"
    expect(page.get_by_label("Words")).to_be_checked()
    expect(page.get_by_label("Let the model reason")).to_be_checked()
    expect(page.get_by_role("button", name="price to 90")).to_be_visible()


def test_filters_add_up_and_go(page: Any, state: Told) -> None:
    page.goto("/#/search?q=shoe")
    group_of = page.get_by_role("form", name="Filters").get_by_role("group", name="Brand")
    expect(group_of.get_by_role("checkbox").first).to_be_visible()
    brands = [text.split("\n")[0] for text in group_of.locator(".value").all_inner_texts()][:2]
    group_of.get_by_text(brands[0], exact=True).click()
    expect(page.get_by_role("button", name=f"brand {brands[0]}")).to_be_visible()
    group_of.get_by_text(brands[1], exact=True).click()  # the other values are still there to be added
    expect(page.get_by_role("button", name="remove this filter")).to_have_count(2)
    expect(page.locator(".results .card").first).to_be_visible()
    assert sorted(state.searches[-1].filters.brand) == sorted(brands)
    page.get_by_label("to", exact=True).fill("1")
    page.get_by_label("to", exact=True).press("Enter")
    expect(page.get_by_text("No product passes all filters.")).to_be_visible()
    page.get_by_role("button", name="Clear all", exact=True).click()
    expect(page.get_by_role("button", name="remove this filter")).to_have_count(0)
    expect(page.locator(".results .card").first).to_be_visible()
    assert state.searches[-1].filters.brand == []


def test_more_results_and_feedback(page: Any, state: Told) -> None:
    page.goto("/#/search?q=bag")
    expect(page.locator(".results .card")).to_have_count(24)
    page.get_by_role("button", name="More results").click()
    expect(page.locator(".results .card")).to_have_count(30)
    expect(page.get_by_role("button", name="More results")).to_have_count(0)
    assert page.evaluate("document.activeElement.closest('.card') !== null"), "the focus went with the button"
    page.locator(".results .card").nth(1).get_by_role("button", name="Does not fit").click()
    expect(page.locator(".toast")).to_contain_text("Noted: it does not fit.")
    assert state.feedback[0].kind == "search" and state.feedback[0].verdict == "reject"
    assert state.feedback[0].subject["query"] == "bag"
    assert (
        page.locator(".results .card")
        .nth(1)
        .get_by_role("button", name="Does not fit")
        .get_attribute("aria-pressed")
        == "true"
    )


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_photo_is_made_small_and_loses_its_metadata(page: Any, state: Told, way: str) -> None:
    page.goto("/")
    data = photo()
    assert b"Secret camera" in data
    expect(page.get_by_role("searchbox")).to_be_focused()
    if way == "choose":
        page.locator("#photo").set_input_files({"name": "p.jpg", "mimeType": "image/jpeg", "buffer": data})
    else:
        give(page, way, data, "#words")
    expect(page.get_by_alt_text("The photo to search with")).to_be_visible()
    expect(page.locator(".results .card").first).to_be_visible()
    asked = state.searches[-1].image
    assert asked is not None and asked.startswith("data:image/jpeg;base64,")
    sent = base64.b64decode(asked.split(",")[1])
    assert b"Secret" not in sent and b"Exif" not in sent
    assert images.load(ImageRef(data=sent)).size == (1024, 576)
    page.get_by_role("searchbox").fill("in blue")
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_text("in blue with a photo", exact=True)).to_be_visible()
    page.get_by_role("button", name="Remove the photo").click()
    expect(page.get_by_alt_text("The photo to search with")).to_have_count(0)
    expect(page.locator(".found-line b")).to_have_text("in blue")
    assert state.searches[-1].image is None


def test_no_tick_of_a_filter_is_lost_while_a_reply_is_awaited(page: Any, state: Told) -> None:
    page.set_viewport_size({"width": 1280, "height": 2400})  # nothing scrolls under the pointer
    page.goto("/#/search?q=shoe")
    boxes = (
        page.get_by_role("form", name="Filters").get_by_role("group", name="Brand").get_by_role("checkbox")
    )
    expect(boxes.first).to_be_visible()
    brands = [boxes.nth(i).get_attribute("value") for i in range(3)]
    state.gate.clear()
    boxes.nth(0).click()
    expect(page.get_by_role("button", name=f"brand {brands[0]}")).to_be_visible()
    boxes.nth(1).click()  # before the reply to the first
    expect(page.get_by_role("button", name="remove this filter")).to_have_count(2)
    boxes.nth(2).hover()
    page.mouse.down()  # and the reply comes in the middle of the third
    state.gate.set()
    expect(page.locator("main [aria-busy]")).to_have_count(0)
    page.mouse.up()
    expect(page.get_by_role("button", name="remove this filter")).to_have_count(3)
    expect(page.locator("main [aria-busy]")).to_have_count(0)
    assert sorted(state.searches[-1].filters.brand) == sorted(brands)


def test_a_file_that_is_no_picture(page: Any, state: Told) -> None:
    page.goto("/")
    page.locator("#photo").set_input_files(
        {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"}
    )
    expect(page.get_by_role("alert")).to_contain_text("a.jpg is not a picture that this browser can read")
    assert not state.searches


# --------------------------------------------------------------------------------------- failing


def test_a_slow_service_can_be_left(page: Any, state: Told) -> None:
    state.gate.clear()
    page.goto("/#/search?q=bag")
    expect(page.locator(".skeleton").first).to_be_visible()
    expect(page.get_by_text("Still working", exact=False).first).to_be_visible(timeout=6000)
    with page.expect_event("requestfailed") as ended:  # the request does not go on behind it
        page.get_by_role("button", name="Cancel").click()
    assert ended.value.failure == "net::ERR_ABORTED"
    expect(page.get_by_text("Cancelled.")).to_be_visible()
    state.gate.set()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".results .card").first).to_be_visible()


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (Failure(500, "a trace nobody should read", times=1), "The service had an error of its own."),
        (Failure(429, "the queue is full", "7", times=1), "The queue is full. Try again in 7 seconds."),
        (Failure(429, "more than 9 per 1 minute: try again in 7 s", "7", times=1), "try again in 7 s."),
        (Failure(429, "", times=1), "more requests than it can take. Try again in a moment."),
        (Failure(503, "the model is being loaded", "2", times=1), "Try again in 2 seconds."),
        (Failure(422, "<img src=x onerror=alert(1)>", times=1), "<img src=x onerror=alert(1)>"),
    ],
)
def test_failures_are_one_sentence_and_a_way_on(page: Any, state: Told, failure: Failure, says: str) -> None:
    page.refusals = True
    state.failures["/v1/search"] = failure
    page.goto("/#/search?q=bag")
    expect(page.get_by_role("alert")).to_contain_text(says)
    expect(page.get_by_role("alert")).not_to_contain_text("trace")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".results .card").first).to_be_visible()


def test_a_service_that_is_gone(page: Any, state: Told) -> None:
    page.goto("/")
    page.route("**/v1/**", lambda route: route.abort())
    search(page, "bag")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.watch.wrong = [one for one in page.watch.wrong if "net::ERR_FAILED" not in one]


def test_an_unknown_product_and_an_unknown_view(page: Any) -> None:
    page.refusals = True
    page.goto("/#/product/nobody%2Fknows")
    expect(page.get_by_role("alert")).to_contain_text("There is no product with the id nobody/knows.")
    page.goto("/#/nowhere")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()


def test_a_key_is_asked_for_once_and_pictures_are_fetched_with_it(page: Any, state: Told) -> None:
    page.refusals = True
    state.key = "right"
    page.goto("/#/search?q=bag")
    dialog = page.get_by_role("dialog", name="This service asks for a key")
    expect(dialog).to_be_visible()
    dialog.get_by_label("API key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("was not accepted")
    dialog.get_by_label("API key").fill("right")
    dialog.get_by_label("API key").press("Enter")
    expect(page.locator(".results .card img").first).to_have_attribute("src", re.compile("^blob:"))
    assert page.locator(".results .card img").first.evaluate(
        "(image) => image.decode().then(() => image.naturalWidth)"
    )
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.get_by_role("link", name="Catalogue", exact=True).click()
    expect(page.get_by_text("The index is up to date.")).to_be_visible()
    expect(dialog).not_to_be_visible()


def test_without_a_key_the_page_says_so(page: Any, state: Told) -> None:
    page.refusals = True
    state.key = "right"
    page.goto("/#/catalogue")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("needs an API key")


# --------------------------------------------------------------------- keyboard, phone, both schemes


def test_the_whole_way_by_keyboard(page: Any, state: Told) -> None:
    page.goto("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("bag")
    page.keyboard.press("Enter")
    expect(page.locator(".results .card").first).to_be_visible()
    expect(page.locator("#status")).to_have_text(re.compile("24 results for bag, there are more"))
    for _ in range(60):
        page.keyboard.press("Tab")
        here = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e);
            return [e.closest(".card h3") !== null, e.getBoundingClientRect().width, s.outlineStyle]; }"""
        )
        assert here[2] != "none" or page.evaluate("document.activeElement.matches('input, summary, label')")
        if here[0]:
            break
    assert here[0], "no result can be reached with the Tab key"
    page.keyboard.press("Enter")
    expect(page.locator("article.product h1")).to_be_visible()
    assert page.title() != "Search · Moonshelf"
    page.go_back()
    expect(page.locator(".results .card").first).to_be_visible()
    page.get_by_role("link", name="Skip to the content").press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_on_a_phone_nothing_is_wider_and_filters_are_a_drawer(browser: Any, home: str, state: Told) -> None:
    for page in opened(browser, home, viewport={"width": 360, "height": 740}, has_touch=True):
        for view in VIEWS:
            page.goto("/" + view)
            expect(page.locator("main [aria-busy]")).to_have_count(0)
            wide = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 0, f"{view} is {wide} pixels wider than a phone"
        page.goto("/#/search?q=bag")
        page.get_by_role("button", name="Filters").click()
        drawer = page.get_by_role("dialog", name="Filters")
        brand = drawer.get_by_role("group", name="Brand").get_by_role("checkbox").first
        brand.check()
        expect(drawer.get_by_role("button", name="Show the results")).to_contain_text("product")
        page.keyboard.press("Escape")
        expect(drawer).not_to_be_visible()
        expect(page.get_by_role("button", name="Filters (1)")).to_be_focused()
        expect(page.get_by_role("button", name="remove this filter")).to_have_count(1)


def test_a_few_tabs_lead_to_the_first_result(page: Any) -> None:
    page.goto("/#/search?q=bag")
    expect(page.locator(".results .card").first).to_be_visible()
    skip = page.get_by_role("link", name="Skip to the results")
    page.get_by_role("searchbox").focus()
    for _ in range(6):
        page.keyboard.press("Tab")
        if skip.evaluate("(link) => link === document.activeElement"):
            break
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator(".results .card h3 a").first).to_be_focused()


def test_cards_show_the_feed_first_and_mark_what_is_the_models(page: Any, state: Told) -> None:
    first = state.products[0]
    first.attributes = {"Color": "Navy Blue", "size": "M", "fit": "wide"}
    first.reasoned_attributes = {"colour": "green", "size": "m", "neck": "round", "category": "Handbags"}
    page.goto(f"/#/search?q={first.title}")
    expect(page.locator(".results .card").first.locator(".chip")).to_have_text(
        ["Color: Navy Blue", "size: M", "fit: wide", "model says Color: green", "model says neck: round"]
    )
    expect(page.locator(".results .card").first.locator(".chip.model")).to_have_count(2)


def test_on_a_phone_no_table_breaks_its_words(browser: Any, home: str, state: Told) -> None:
    for page in opened(browser, home, viewport={"width": 390, "height": 844}):
        page.goto("/#/product/p00001")
        cells = page.locator("table.attributes tbody :is(th, td):not(:empty)")
        expect(cells.first).to_be_visible()
        widths = cells.evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().width)")
        assert len(widths) > 8 and min(widths) > 300, "one column a row"
        expect(page.get_by_role("table").get_by_role("rowheader").first).to_be_visible()
        expect(page.get_by_role("columnheader", name="Feed")).to_have_count(1)


def test_a_picture_that_has_not_come_is_held_by_its_title(page: Any, state: Told) -> None:
    held: list[Any] = []
    page.route("**/v1/thumbnails/**", lambda route: held.append(route))
    page.goto("/#/search?q=bag")
    card = page.locator(".results .card").first
    expect(card.locator(".wait")).to_have_text(card.locator("h3").inner_text())
    square = card.locator(".wait").bounding_box()
    assert square is not None and square["width"] == pytest.approx(square["height"], abs=1) and held
    page.unroute("**/v1/thumbnails/**")  # lets those go on that it held
    expect(card.locator(".wait")).to_have_count(0)


def test_the_catalogue_is_short_on_a_phone_and_shows_more(browser: Any, home: str, state: Told) -> None:
    for product in state.products:
        product.reasoned_attributes["colour"] = "no such colour"
    state.conflicts = 50
    for page in opened(browser, home, viewport={"width": 390, "height": 844}):
        page.goto("/#/catalogue")
        rows = page.locator(".conflicts > li")
        expect(rows).to_have_count(6)
        expect(page.locator("table.broken tbody tr")).to_have_count(6)
        assert page.evaluate("document.documentElement.scrollHeight") < 6000
        section = page.locator("section", has=page.locator(".conflicts"))
        section.get_by_role("button", name="Show 6 more").click()
        expect(rows).to_have_count(12)
        expect(rows.nth(6).get_by_role("link")).to_be_focused()
        path = page.locator(".bars th:has(.above)").first
        assert re.fullmatch(r"\S.* \S+ › .*", path.text_content() or ""), path.text_content()


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]
)
def test_axe_finds_nothing(browser: Any, home: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="the extra dev brings axe")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for page in opened(browser, home, color_scheme=scheme, viewport={"width": width, "height": 800}):
        for view in VIEWS:
            page.goto("/" + view)
            expect(page.locator("main h1")).to_be_visible()
            expect(page.locator("main [aria-busy]")).to_have_count(0)
            if view == "#/creatives":
                page.locator("#creative-files").set_input_files(
                    files((200, 30, 30), (30, 30, 200), (9, 99, 9))
                )
                page.get_by_role("button", name="Rank 3 images").click()
                expect(page.locator("figure.winner")).to_have_count(1)
            page.evaluate(source)
            found = page.evaluate("axe.run(document, { preload: false }).then((r) => r.violations)")
            told = [(one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"]) for one in found]
            assert not told, f"{view}: {told}"


def test_every_file_of_the_page_is_small_and_says_what_it_is_for() -> None:
    kinds = {".js": "// ", ".css": "/* ", ".html": "<!doctype html>\n<!-- ", ".svg": "<svg"}
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert text.startswith(kinds[file.suffix]), f"{file.name} does not open with a comment"
        assert len(text.splitlines()) < 350, f"{file.name} is long"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
        assert not re.search(r"""(src|href)=["']https?:|@import|url\(""", text), (
            f"{file.name} loads something"
        )
        inline = r"\sstyle=|\son\w+=|<script(?! type=\"module\" src=)"
        assert file.suffix != ".html" or not re.search(inline, text)
