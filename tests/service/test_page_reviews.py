"""The page in Chromium where people judge: duplicates, creatives; and a catalogue full of hostile text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("playwright", reason="the extra dev brings playwright")
pytest.importorskip("fastapi", reason="the extra serve brings fastapi")
pytest.register_assert_rewrite("page_browser", "page_stub")

from page_browser import expect, files, give, needs_chromium, opened, photo  # noqa: E402
from page_stub import Failure, Told, group  # noqa: E402

from moonshelf.service.review_schemas import SuggestionView  # noqa: E402
from moonshelf.service.schemas import ProductView  # noqa: E402

pytest_plugins = ("page_browser",)
pytestmark = needs_chromium


# -------------------------------------------------------------------------------------- duplicates


def test_duplicates_are_judged_by_keyboard_and_can_be_undone(page: Any, state: Told) -> None:
    page.goto("/#/duplicates")
    groups = page.locator(".groups .group")
    expect(groups).to_have_count(3)
    expect(page.get_by_role("link", name="Variants")).to_contain_text("1")
    expect(groups.first).to_contain_text("Differ in size: 41 (A) and 42 (B)")
    expect(groups.first).to_contain_text("one GTIN, but colour is red and blue")
    page.keyboard.press("j")
    expect(groups.first).to_be_focused()
    page.keyboard.press("j")
    expect(groups.nth(1)).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("a")
    expect(groups).to_have_count(2)
    expect(page.locator(".toast")).to_contain_text("Noted as the same product.")
    assert not state.feedback, "it was sent while it could still be undone"
    page.keyboard.press("u")
    expect(groups).to_have_count(3)
    expect(groups.first).to_be_focused()
    page.keyboard.press("n")
    expect(groups).to_have_count(2)
    page.get_by_role("link", name="Catalogue", exact=True).click()  # leaving sends what waits
    expect(page.get_by_role("heading", name="The catalogue")).to_be_visible()
    page.get_by_role("link", name="Duplicates", exact=True).click()
    expect(groups).to_have_count(2)
    (entry,) = state.feedback
    first = state.groups[0].pairs[0]
    assert (entry.kind, entry.verdict, entry.subject) == ("duplicate", "reject", {"a": first.a, "b": first.b})
    page.get_by_label("Show reviewed groups too").check()
    expect(groups).to_have_count(3)
    expect(groups.first).to_contain_text("Reviewed: not the same")


def test_keys_do_nothing_while_writing_or_switched_off(page: Any, state: Told) -> None:
    page.goto("/#/duplicates")
    groups = page.locator(".groups .group")
    expect(groups).to_have_count(3)
    groups.first.get_by_text("Add a note").click()
    groups.first.get_by_role("textbox").press_sequentially("an unjust judge")
    expect(groups).to_have_count(3)
    page.get_by_role("checkbox", name="Keys").uncheck()
    groups.first.focus()
    page.keyboard.press("a")
    expect(groups).to_have_count(3)
    groups.first.get_by_role("button", name="The same product").click()
    page.get_by_role("link", name="Look alike").click()
    expect(groups).to_have_count(1)
    assert [one.note for one in state.feedback] == ["an unjust judge"]


def test_every_pair_of_a_group_gets_the_verdict(page: Any, state: Told) -> None:
    state.groups = [group("duplicate", *state.products[:3])]
    page.goto("/#/duplicates")
    page.get_by_role("button", name="The same product").click()
    expect(page.get_by_text("Nothing is left to review here.")).to_be_visible()
    page.get_by_role("link", name="Search").click()
    expect(page.get_by_role("searchbox")).to_be_visible()
    for _ in range(40):
        if len(state.feedback) == 3:
            break
        page.wait_for_timeout(50)
    assert len({(one.subject["a"], one.subject["b"]) for one in state.feedback}) == 3


def test_a_verdict_is_sent_when_the_page_is_closed(page: Any, state: Told) -> None:
    page.goto("/#/duplicates")
    page.locator(".groups .group").first.get_by_role("button", name="Not the same").click()
    page.goto("about:blank")
    for _ in range(60):
        if state.feedback:
            break
        page.wait_for_timeout(50)
    assert [one.verdict for one in state.feedback] == ["reject"]


def test_a_verdict_that_could_not_be_stored_comes_back(page: Any, state: Told) -> None:
    page.refusals = True
    state.failures["/v1/feedback"] = Failure(503, "another writer holds the folder", "2")
    page.goto("/#/duplicates")
    groups = page.locator(".groups .group")
    groups.first.get_by_role("button", name="Not the same").click()
    expect(groups).to_have_count(2)
    page.clock.install()  # the six seconds of the undo, without waiting for them
    groups.first.get_by_role("button", name="Not the same").click()
    page.clock.run_for(7000)
    expect(page.get_by_text("Not stored. Another writer holds the folder.")).to_be_visible()
    expect(groups).to_have_count(2)


# --------------------------------------------------------------------------------------- creatives


def test_two_creatives_are_compared_overridden_and_exported(page: Any, state: Told, tmp_path: Path) -> None:
    page.goto("/#/creatives")
    expect(page.get_by_role("button", name="Compare")).to_be_disabled()
    page.locator("#creative-files").set_input_files(files((200, 30, 30), (30, 30, 200)))
    page.get_by_label("Words on image A").fill(" Soft and warm ")
    page.get_by_label("Title of the product").fill("Trail runner")
    page.get_by_label("What shoppers search for").fill("red shoe\n\nwaterproof shoe\n")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="B is preferred, with probability 0.71")).to_be_focused()
    asked = state.compared[-1]
    assert asked.title == "Trail runner" and asked.interest == ["red shoe", "waterproof shoe"]
    assert (asked.a.id, asked.b.id) == ("creative 1.jpg", "creative 2.jpg")
    assert (asked.a.text, asked.b.text) == ("Soft and warm", "")
    winner = page.locator("figure.winner")
    expect(winner).to_have_count(1)
    expect(winner).to_contain_text("preferred")
    expect(winner).to_contain_text("creative 2.jpg")
    rows = page.get_by_role("table").get_by_role("row")
    expect(rows).to_have_count(10)
    expect(rows.nth(3)).to_contain_text(
        re.compile("shopper looks for.*A.*small, at the edge.*large and whole", re.S)
    )
    expect(page.get_by_text("foretells no click-through rate")).to_be_visible()

    page.get_by_role("radio", name="A creative 1.jpg").check()
    page.get_by_label("Note").fill("the logo is ours")
    page.get_by_role("button", name="Store my choice").click()
    expect(page.get_by_text("Stored: you chose A.")).to_be_visible()
    (entry,) = state.feedback
    assert (entry.kind, entry.verdict, entry.note) == ("creative", "creative 1.jpg", "the logo is ours")
    assert entry.subject["campaign"] == "Trail runner" and "creative 2.jpg" in entry.subject["creatives"]

    page.get_by_role("button", name="Test plan").click()
    expect(page.get_by_role("alert")).to_contain_text("say what share of impressions is usually clicked")
    page.get_by_label("Usual click rate").fill("2")
    with page.expect_download() as down:
        page.get_by_role("button", name="Test plan").click()
    down.value.save_as(tmp_path / "plan.md")
    assert down.value.suggested_filename == "creatives-plan.md"
    assert (tmp_path / "plan.md").read_text() == "plan at 0.02"
    with page.expect_download() as down:
        page.get_by_role("button", name="Reply as JSON").click()
    down.value.save_as(tmp_path / "reply.json")
    assert json.loads((tmp_path / "reply.json").read_text())["winner"] == "creative 2.jpg"

    page.get_by_role("link", name="Catalogue", exact=True).click()
    page.get_by_role("link", name="Creatives").click()  # what was given and said is still there
    expect(page.locator("figure.winner")).to_have_count(1)


def test_an_abstention_is_said_in_words(page: Any, state: Told) -> None:
    state.abstained = "the two orders disagree"
    page.goto("/#/creatives")
    page.locator("#creative-files").set_input_files(files((200, 30, 30), (30, 30, 200)))
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="No verdict")).to_be_visible()
    expect(page.get_by_text("The judge abstains: the two orders disagree.")).to_be_visible()
    expect(page.locator("figure.winner")).to_have_count(0)


def test_more_creatives_are_ranked(page: Any, state: Told) -> None:
    page.goto("/#/creatives")
    page.locator("#creative-files").set_input_files(files((200, 30, 30), (30, 30, 200), (200, 30, 30)))
    page.get_by_role("button", name="Rank 3 images").click()
    expect(page.get_by_role("heading", name="C leads, but not clearly")).to_be_visible()
    expect(page.get_by_text("A and C are one and the same image")).to_be_visible()
    expect(page.get_by_role("table").first.get_by_role("row")).to_have_count(4)
    expect(page.get_by_role("cell", name="57 %")).to_be_visible()
    page.get_by_text("B and C: C preferred, 0.70").click()
    expect(page.get_by_role("columnheader", name="In B it saw")).to_be_visible()
    page.get_by_role("button", name="Remove image B").click()
    expect(page.locator(".verdict-box")).to_be_empty()
    give(page, "paste", photo((9, 99, 9), (50, 50)))
    expect(page.locator(".tiles-row li")).to_have_count(3)


# ------------------------------------------------------------------------------------ hostile text

HOSTILE = (
    '<img src=x onerror="window.pwned=1">',
    '"><script>window.pwned=1</script>',
    "<svg onload=alert(1)>",
    "{{constructor.constructor('window.pwned=1')()}}",
    "</title></bdi><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "\u202egpj.exe\u202c' onmouseover='window.pwned=1",
)


def test_hostile_text_is_only_ever_read(page: Any, state: Told) -> None:
    links = (
        "javascript:window.pwned=1", "data:text/html,<script>1</script>", "//evil.example", "vbscript:x",
        " javascript:window.pwned=1", "https://evil.example/?<script>",
    )  # fmt: skip
    thumbnails = (
        "https://evil.example/x.jpg", "//evil.example/x.jpg", "javascript:1", "/v1/thumbnails/../../x",
        "/v1/thumbnails/9.jpg", "data:text/html,1",
    )  # fmt: skip
    state.products = [
        ProductView(
            id=text, title=text, description=text, brand=text, price=1, currency="<b>", group_id=text,
            availability=text, category=f"{text} > {text}", link=link, thumbnail=thumbnail,
            attributes={text: text, "colour": text, "brand": text, "material": text},
            rationale=f"<think>{text}</think>", rationale_valid=False,
            reasoned_attributes={text: "no", "colour": "x"},
        )
        for text, link, thumbnail in zip(HOSTILE, links, thumbnails, strict=True)
    ]  # fmt: skip
    state.notes = list(HOSTILE)
    state.reasons = HOSTILE[0]
    state.abstained = ""
    hostile = group("duplicate", *state.products[:3])
    for pair in hostile.pairs:
        pair.conflicts, pair.attributes_agree = list(HOSTILE), list(HOSTILE)
        pair.attributes_differ, pair.identifiers = {HOSTILE[0]: list(HOSTILE[:2])}, {HOSTILE[1]: "same"}
    state.groups = [hostile]
    page.refusals = True  # pictures that are not there
    page.goto("/#/search?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&brand=%3Cscript%3E1%3C/script%3E")
    expect(page.get_by_text("No product passes all filters.")).to_be_visible()
    expect(page.get_by_role("button", name="brand <script>1</script>")).to_be_visible()
    page.goto("/#/search?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    expect(page.locator(".results .card")).to_have_count(len(HOSTILE))
    for text in HOSTILE:
        assert any(text in shown for shown in page.locator(".results .card h3").all_text_contents())
    for text in HOSTILE[:2]:
        page.goto(f"/#/product/{quote(text, safe='')}")
        expect(page.locator("h1")).to_have_text(text)
        expect(page.locator(".wrote")).to_have_text(text)
        assert not page.locator(".facts a").count(), "an address that is not http became a link"
    page.goto(f"/#/product/{quote(HOSTILE[5], safe='')}")
    link = page.locator(".facts a")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    page.goto("/#/duplicates")
    expect(page.locator(".groups .group")).to_contain_text(HOSTILE[0])
    page.goto("/#/catalogue")
    expect(page.locator(".conflicts")).to_contain_text(HOSTILE[0])
    page.goto("/#/creatives")
    page.locator("#creative-files").set_input_files(
        [{**one, "name": name} for one, name in zip(files((9, 9, 9), (1, 200, 1)), HOSTILE, strict=False)]
    )
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("table")).to_contain_text(HOSTILE[0])
    assert page.evaluate("window.pwned") is None
    expect(page.locator("iframe, main script, main svg:not(.icon), [onerror], [onload]")).to_have_count(0)


def test_a_ranking_without_a_verdict_has_no_places(page: Any, state: Told) -> None:
    state.abstained = "the images differ in nothing that it was asked about"
    page.goto("/#/creatives")
    page.locator("#creative-files").set_input_files(files((200, 30, 30), (30, 30, 200), (9, 99, 9)))
    page.get_by_role("button", name="Rank 3 images").click()
    expect(page.locator(".verdict-box h2")).to_have_text("No verdict: the images are in no order")
    expect(page.locator(".places figure")).to_have_count(3)
    expect(page.locator(".places .place")).to_have_count(0)
    expect(page.locator("ul.places")).to_have_count(1)
    expect(page.get_by_text("How sure the order is")).to_have_count(0)


def test_without_a_judge_the_form_says_so(page: Any, state: Told) -> None:
    state.judge = ""
    page.goto("/#/creatives")
    expect(page.get_by_role("status").get_by_text("Nothing can be compared here")).to_be_visible()
    page.locator("#creative-files").set_input_files(files((200, 30, 30), (30, 30, 200)))
    expect(page.get_by_role("button", name="Compare")).to_be_disabled()
    expect(page.locator("#start-hint")).to_have_text("This service has no judge.")


def test_a_phone_gets_few_groups_at_once(browser: Any, home: str, state: Told) -> None:
    one = state.groups[0].members
    state.groups = [group("variant", a, b) for a in one for b in state.products[2:9]]
    for page in opened(browser, home, viewport={"width": 390, "height": 844}):
        page.goto("/#/duplicates")
        expect(page.locator(".group")).to_have_count(5)
        page.get_by_role("button", name="More groups (9)").click()
        expect(page.locator(".group")).to_have_count(10)


def test_duplicates_open_on_a_kind_that_has_some(page: Any, state: Told) -> None:
    state.groups = [group for group in state.groups if group.kind != "duplicate"]
    page.goto("/#/duplicates")
    expect(page.locator(".group")).to_have_count(1)
    expect(page.get_by_role("link", name="Variants")).to_have_attribute("aria-current", "page")
    page.get_by_role("link", name="Duplicates", exact=False).nth(1).click()  # asked for, it is shown
    expect(page.get_by_text("Nothing is left to review here.")).to_be_visible()


def test_a_suggested_value_is_kept_changed_or_rejected(page: Any, state: Told) -> None:
    state.suggestions = [
        SuggestionView(
            product=p, name="colour", value="red", source="picture", confidence=0.61, accepted=False,
            allowed=None, review=None,
        )
        for p in state.products[:3]
    ]  # fmt: skip
    page.goto("/#/catalogue")
    expect(page.get_by_role("heading", name="Gaps that could be filled")).to_be_visible()
    forms = page.locator("form.arbiter")
    forms.nth(0).get_by_role("button", name="Keep this value").click()
    expect(forms.nth(0)).to_contain_text("colour is red")
    forms.nth(1).get_by_label("Value for colour").fill("maroon")
    forms.nth(1).get_by_label("Note for colour").fill("darker")
    forms.nth(1).get_by_role("button", name="Keep this value").click()
    forms.nth(2).get_by_role("button", name="It has none").click()
    expect(forms.nth(2)).to_contain_text("rejected")
    said = [(one.verdict, one.note, one.subject["suggested"]) for one in state.feedback]
    assert said == [("red", "", "red"), ("maroon", "darker", "red"), ("none", "", "red")]
