"""The playground and the report in a real browser: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from promptforge_playground.playground import Playground, Shown
from promptforge_playground.saving import Shelf
from promptforge_playground.server import Server

from promptforge import Task, Template

sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

EVIL = (
    "<img src=x onerror=document.title='got'><script>document.title='got'</script> {{ 7*7 }} dull"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium on the PATH: install the system's (on Debian 'apt install chromium')")  # fmt: skip
    with sync.sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, as whom containers run.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = playwright.chromium.launch(executable_path=found, args=arguments)
        yield made
        made.close()


@contextmanager
def opened(
    browser: Any, url: str, *, network: bool, width: int = 1280, dark: bool = False
) -> Iterator[Any]:
    """A page that may ask nobody but itself, and that has to stay without complaints."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light",
        offline=not network,
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(20_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "data:")):
            said.append(f"asks for {request.url}")

    page.on("request", asked)
    try:
        page.goto(url)
        yield page
        assert said == []
    finally:
        context.close()


class Bench:
    """The playground of a task folder, as the tests open it."""

    def __init__(self, browser: Any, folder: Path, architecture: str, rows: list[Shown]) -> None:
        self.browser = browser
        task = Task.load(folder)
        made = Playground(task, tiny.backbone(architecture), rows, shelf=Shelf(task))
        self.server = Server(made)
        self.server.start()

    @contextmanager
    def page(self, **options: Any) -> Iterator[Any]:
        with opened(self.browser, self.server.url, network=True, **options) as page:
            settled(page)
            yield page


def settled(page: Any) -> None:
    """Wait until what is written now has been answered."""
    page.wait_for_selector("#see[aria-busy=false]")


def write(page: Any, text: str) -> None:
    """Replace the template, key by key."""
    page.locator("#template").click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(text)
    settled(page)


def texts(page: Any, selector: str) -> list[str]:
    return [str(text) for text in page.locator(selector).all_text_contents()]


def classes(page: Any) -> dict[str, float]:
    """What the page says of the classes: label -> percent."""
    names, values = texts(page, "#classes .name"), texts(page, "#classes .value")
    return {
        n.removesuffix("true"): float(v.rstrip(" %")) for n, v in zip(names, values, strict=True)
    }


def overflow(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def contrast(page: Any, selector: str) -> float:
    """How much the text of an element stands out from what is behind it, 1 to 21 (WCAG 2)."""
    return float(page.evaluate(
        """selector => {
          const rgb = text => text.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const at = document.querySelector(selector);
          let behind = at;
          while (behind.parentElement && (rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 1) behind = behind.parentElement;
          const [a, b] = [light(rgb(getComputedStyle(at).color)), light(rgb(getComputedStyle(behind).backgroundColor))];
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }""",
        selector,
    ))  # fmt: skip


# --- the playground -------------------------------------------------------------------------


@pytest.fixture
def bench(browser: Any, reviews: Path) -> Iterator[Bench]:
    rows = [
        Shown({"text": "A joy from start to finish."}, "positive"),
        Shown({"text": EVIL}, "negative"),
        Shown({"text": "Slow, but it has its moments."}, None),
    ]
    made = Bench(browser, reviews, "bert", rows)
    yield made
    made.server.close()


def test_what_one_types_is_answered_and_saved(bench: Bench, reviews: Path) -> None:
    with bench.page() as page:
        page.get_by_text("it-was", exact=True).click()
        settled(page)
        before = texts(page, "#likely .word"), classes(page)
        assert texts(page, "#parts .column-0") == ["A joy from start to finish."]
        assert texts(page, "#parts .mask") == ["mask"] and texts(page, "#tokens .slot") == [
            "[MASK]"
        ]
        assert len(before[0]) == 10 and sum(before[1].values()) == pytest.approx(100, abs=0.2)
        assert page.locator("#save").is_disabled()

        write(page, "{{ text }} All in all it is a {{ mask }} film.\nIs it?")
        assert texts(page, "#parts .template") == [" All in all it is a ", " film.\nIs it?"]
        assert "film" in texts(page, "#tokens span") and texts(page, "#legend .part") == [
            "text",
            "template",
            "mask",
        ]
        after = texts(page, "#likely .word"), classes(page)
        assert after != before
        assert re.fullmatch(r"\d+ of at most \d+", texts(page, "#count")[0])
        sync.expect(page.locator("#speed")).to_contain_text("answered in")

        page.keyboard.press("ControlOrMeta+s")
        sync.expect(page.locator("#status")).to_contain_text("Saved to")
        file = reviews / "it-was.jinja"
        assert (
            file.read_text(encoding="utf-8")
            == "{{ text }} All in all it is a {{ mask }} film.\nIs it?\n"
        )
        assert page.locator("#save").is_disabled() and str(file) in texts(page, "#status")[0]
    with bench.page() as page:
        page.get_by_text("it-was", exact=True).click()
        assert page.locator("#template").input_value().endswith("film.\nIs it?")


def test_a_mistake_shows_and_goes_and_nothing_typed_is_lost(bench: Bench) -> None:
    with bench.page() as page:
        good = texts(page, "#likely .word")
        write(page, "{{ text }}\nIt was {{ maks }}.")
        error = page.locator("#error")
        assert (
            error.is_visible()
            and "Line 2:" in error.inner_text()
            and "'mask'" in error.inner_text()
        )
        assert texts(page, ".line.wrong") == ["It was {{ maks }}."]
        assert page.locator("#template").input_value() == "{{ text }}\nIt was {{ maks }}."
        assert texts(page, "#likely .word") == good  # the last answer stays, paler
        assert page.locator("#see").get_attribute("class") == "see old"
        page.locator("#save").click()
        sync.expect(page.locator("#status")).to_have_text("Not saved.")
        assert error.is_visible()
        write(page, "{{ text }}\nIt was {{ mask }}.")
        assert error.is_hidden() and not texts(page, ".line.wrong")
        assert page.locator("#see").get_attribute("class") == "see"
        page.get_by_text("review", exact=True).click()
        settled(page)
        page.get_by_text("tone •").or_(page.get_by_text("tone", exact=True)).click()
        assert page.locator("#template").input_value() == "{{ text }}\nIt was {{ mask }}."
        page.get_by_role("button", name="Undo all changes").click()
        settled(page)
        assert texts(page, "#likely .word") == good


def test_a_change_on_the_disk_is_told_and_can_be_taken(bench: Bench, reviews: Path) -> None:
    with bench.page() as page:
        write(page, "{{ text }} Mine {{ mask }}")
        (reviews / "tone.jinja").write_text("{{ text }} Theirs {{ mask }}\n", encoding="utf-8")
        page.locator("#save").click()
        page.locator("#reload").wait_for()
        assert "has changed on the disk" in page.locator("#error").inner_text()
        assert page.locator("#template").input_value() == "{{ text }} Mine {{ mask }}"
        assert (reviews / "tone.jinja").read_text(
            encoding="utf-8"
        ) == "{{ text }} Theirs {{ mask }}\n"
        page.locator("#reload").click()
        page.locator("#error").wait_for(state="hidden")
        assert page.locator("#template").input_value() == "{{ text }} Theirs {{ mask }}"
        page.keyboard.press("ControlOrMeta+z")
        assert page.locator("#template").input_value() == "{{ text }} Mine {{ mask }}"
        page.locator("#save").click()
        sync.expect(page.locator("#status")).to_contain_text("Saved to")
        assert (reviews / "tone.jinja").read_text(
            encoding="utf-8"
        ) == "{{ text }} Mine {{ mask }}\n"


def test_label_words_and_values_are_edited(bench: Bench, reviews: Path) -> None:
    with bench.page() as page:
        before = classes(page)
        negative, positive = page.get_by_label("negative"), page.get_by_label("positive")
        negative.fill("wonderful")
        positive.fill("awful")
        settled(page)
        assert classes(page)["negative"] == pytest.approx(before["positive"], abs=0.11)
        positive.fill("")
        settled(page)
        assert "Give each label a word" in texts(page, "#words-error")[0] and not classes(page)
        positive.fill("fine, good")
        settled(page)
        assert page.locator("#words-error").is_hidden()
        page.locator("#save").click()
        sync.expect(page.locator("#status")).to_contain_text("Saved to")
        assert Task.load(reviews).labels == {
            "negative": ["wonderful"],
            "positive": ["fine", "good"],
        }
        words = texts(page, "#likely .word")
        page.get_by_label("text", exact=True).fill("Utterly dull.")
        settled(page)
        assert (
            texts(page, "#parts .column-0") == ["Utterly dull."]
            and texts(page, "#likely .word") != words
        )


def test_a_save_of_ones_own_is_no_change_by_others(browser: Any, tmp_path: Path) -> None:
    """The first save writes all patterns; label words that are shared change for all of them."""

    def save(page: Any, pattern: str, text: str) -> None:
        page.locator(f"label:has(#pattern-{pattern})").click()
        write(page, text)
        page.locator("#save").click()
        sync.expect(page.locator("#status")).to_contain_text(f"{pattern}.jinja")
        assert page.locator("#error").is_hidden()

    task = Task.inline(
        [Template(f"{{{{ text }}}} {name} {{{{ mask }}}}", name=name) for name in ("one", "two")],
        labels={"a": ["bad"], "b": ["good"]},
    )
    rows = [Shown({"text": "A joy."}, None)]
    new = Playground(task, tiny.backbone("bert"), rows, shelf=Shelf(task, tmp_path / "mine"))
    with Server(new) as server:
        server.start()
        with opened(browser, server.url, network=True) as page:
            save(page, "one", "{{ text }} One {{ mask }}")
            save(page, "two", "{{ text }} Two {{ mask }}")
    loaded = Task.load(tmp_path / "mine")
    with Server(Playground(loaded, tiny.backbone("bert"), rows, shelf=Shelf(loaded))) as server:
        server.start()
        with opened(browser, server.url, network=True) as page:
            page.locator("label:has(#pattern-two)").click()
            page.get_by_label("b", exact=True).fill("fine")
            save(page, "two", "{{ text }} Two! {{ mask }}")
            page.locator("label:has(#pattern-one)").click()
            assert page.get_by_label("b", exact=True).input_value() == "fine"
            save(page, "one", "{{ text }} One! {{ mask }}")
            assert page.locator(".dirty").count() == 0
    assert Task.load(tmp_path / "mine").labels == {"a": ["bad"], "b": ["fine"]}


def test_text_from_the_data_is_text(bench: Bench) -> None:
    with bench.page() as page:
        page.get_by_role("button", name="Next row").click()
        settled(page)
        assert texts(page, "#parts .column-0") == [EVIL]
        assert page.locator("main img, main script").count() == 0
        assert page.title() == "movie-reviews · PromptForge playground"
        assert texts(page, "#rows tr:nth-child(2) button") == [EVIL]


def test_all_rows_are_read_after_the_one_in_view(bench: Bench) -> None:
    with bench.page() as page:
        sync.expect(page.locator("#right")).to_have_text(re.compile(r"^[012] of 2 right$"))
        told = texts(page, "#rows .value")
        assert all(re.match(r"(negative|positive) \d+\s%", value) for value in told)
        assert [value[-1] in "✓✗" for value in told] == [True, True, False]
        page.locator("#rows tr:nth-child(3) button").click()
        settled(page)
        assert texts(page, "#row-number") == ["3 of 3"]
        best = max(classes(page), key=classes(page).__getitem__)
        assert texts(page, "#rows .value")[2].startswith(best) and told[2].startswith(best)


def test_keys_alone_are_enough(bench: Bench) -> None:
    with bench.page() as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "pattern-tone"
        page.keyboard.press("ArrowRight")
        settled(page)
        assert page.evaluate("document.activeElement.id") == "pattern-review"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "template"
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("So ")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # inserts {{ mask }}
        settled(page)
        assert page.locator("#template").input_value() == "So {{ mask }}"
        page.keyboard.press("Alt+ArrowDown")
        assert texts(page, "#row-number") == ["2 of 3"]
        unnamed = page.evaluate(
            """[...document.querySelectorAll("input, textarea, button")].filter(e => !(
              e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.outerHTML)"""
        )
        assert unnamed == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_playground_is_readable(bench: Bench, width: int, dark: bool) -> None:
    with bench.page(width=width, dark=dark) as page:
        write(
            page,
            '{{ text }}{{ sep }}{{ soft("so") }} {{ text | upper }} It {{ mask }}' + "long" * 60,
        )
        assert overflow(page) <= 0
        assert (contrast(page, "body") > 10) and page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        ) == ("rgb(20, 22, 26)" if dark else "rgb(251, 251, 250)")
        for selector in (
            ".note",
            ".part.column-0",
            "#parts .mask",
            "#parts .soft",
            "#painted .code",
            "#save:enabled",
        ):
            assert contrast(page, selector) >= 4.5, selector
        # What is painted lies exactly under what is written.
        sizes = page.evaluate(
            "['painted', 'template'].map(id => [scrollHeight(id), document.getElementById(id).clientWidth]);"
            "function scrollHeight(id) { return document.getElementById(id).scrollHeight }"
        )
        assert sizes[0] == sizes[1]


def test_the_last_key_decides_what_is_shown(bench: Bench) -> None:
    with bench.page() as page:
        for text in ("{{ text }} one {{ mask }}", "{{ text }} two three {{ mask }}", "{{ mask"):
            page.locator("#template").fill(text)
        settled(page)
        assert page.locator("#error").is_visible()
        for i in range(12):
            page.locator("#template").fill(f"{{{{ text }}}} {'film ' * i}{{{{ mask }}}}")
        settled(page)
        assert (
            texts(page, "#tokens span").count("film") == 11 and page.locator("#error").is_hidden()
        )
        shown = classes(page)
        write(page, "{{ text }} " + "film " * 11 + "{{ mask }}")
        assert classes(page) == shown


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_other_families_show_their_tokens(browser: Any, reviews: Path, architecture: str) -> None:
    made = Bench(browser, reviews, architecture, [Shown({"text": "A fine film."}, "positive")])
    try:
        with made.page() as page:
            assert len(texts(page, "#likely .word")) == 10 and len(classes(page)) == 2
            assert len(texts(page, "#tokens .slot")) == 1
            assert bool(texts(page, "#tokens .begins")) == (architecture == "t5")
            assert page.locator("#rows-section").is_hidden()
    finally:
        made.server.close()


def test_a_shipped_task_is_not_changed_and_a_server_that_ends_is_told(browser: Any) -> None:
    task = Task.load("sentiment")
    row = [Shown(dict.fromkeys(task.inputs, "A fine film."))]
    server = Server(Playground(task, tiny.backbone("bert"), row))
    server.start()
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    settled(page)
    assert page.locator("#save").is_disabled()
    assert "promptforge templates copy sentiment" in texts(page, "#status")[0]
    server.close()
    page.locator("#template").fill("{{ text }} Still here {{ mask }}")
    sync.expect(page.locator("#status")).to_contain_text("does not answer")
    assert page.locator("#template").input_value() == "{{ text }} Still here {{ mask }}"
    context.close()


# --- the report -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one run, and one of two."""
    from promptforge.cli import run

    pytest.importorskip("matplotlib")
    home = tmp_path_factory.mktemp("browser-report")
    task = Path(shutil.copytree(tiny.EXAMPLES, home / "task"))
    for split, most in (("test", 20), ("unlabeled", 20)):
        path = task / f"{split}.csv"
        with path.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))[: most + 1]
        rows[1][rows[0].index("text")] = EVIL + "long" * 100
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows(rows)
    model = str(tiny.save("bert", home / "bert"))
    for seed in ("13", "21"):
        asked = ["-q", "train", str(task), "--model", model, "--steps", "4", "--eval-every", "2", "--shots", "4",
                 "--pattern", "it-was", "--pattern", "review", "--seed", seed, "--run", str(home / "runs" / seed)]  # fmt: skip
        assert run(asked) == 0
    made = {"one": home / "one.html", "two": home / "two.html"}
    assert (
        run(
            ["-q", "report", str(home / "runs" / "13"), "--output", str(made["one"]), "--rows", "2"]
        )
        == 0
    )
    assert run(["-q", "report", str(home / "runs"), "--output", str(made["two"])]) == 0
    return made


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["one", "two"])
def test_the_report_opens_with_no_network(
    browser: Any, report: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    with opened(browser, report[name].as_uri(), network=False, width=width, dark=dark) as page:
        assert overflow(page) <= 0
        unfold(page)
        assert overflow(page) <= 0
        assert page.title() != "got" and page.locator("main img").count() == 0
        figures = page.locator("figure svg")
        assert figures.count() >= 2
        for i in range(figures.count()):
            box = figures.nth(i).bounding_box()
            assert box and box["width"] > 100 and box["height"] > 60, i
            assert box["x"] >= 0 and box["x"] + box["width"] <= width, i
        assert contrast(page, "body") > 10
        for selector in (".note", ".brand", ".piece.column-0", ".piece.mask"):
            assert contrast(page, selector) >= 4.5, selector


def test_the_report_prints_dark_on_light(browser: Any, report: dict[str, Path]) -> None:
    with opened(browser, report["two"].as_uri(), network=False, dark=True) as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert page.locator("nav.toc").first.is_hidden()
        folded = page.evaluate("document.querySelectorAll('details:not([open])').length")
        paper = page.pdf(format="A4", prefer_css_page_size=True)
        assert paper.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", paper)) >= 2
        # Printing unfolds what is folded, and folds it again.
        assert (
            folded
            and page.evaluate("document.querySelectorAll('details:not([open])').length") == folded
        )
