"""The web edition: built from what is committed, whole without a network, and usable by everybody."""

import functools
import http.server
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).resolve().parent.parent
WANTED = os.environ.get("CI") == "true" or os.environ.get("D2LRES_BROWSER")
KEPT = ROOT / "build/browser"
CHAPTERS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
PAGES = ["index", *CHAPTERS, "ledger", "glossary", "api", "search"]
MISSING = "all => all.filter(it => !it.complete || !it.naturalWidth).map(it => it.src)"
WITHOUT_ALT = "all => all.filter(it => !it.alt).map(it => it.src)"
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def in_browser(test):
    """Decorator: as the tests of JupyterLab, where CI has its browser, or where it is asked for."""
    reason = "needs Chromium on Linux: D2LRES_BROWSER=1 runs it"
    skip = pytest.mark.skipif(sys.platform != "linux" or not WANTED, reason=reason)
    return pytest.mark.browser(skip(test))


@pytest.fixture(scope="module")
def site():
    """build/site, built by the command of the Makefile."""
    command = [sys.executable, str(ROOT / "site/build.py")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert re.search(r"index.html: \d+\.\d MB in \d+ s", run.stdout)
    return ROOT / "build/site"


class Page(HTMLParser):
    """The ids, links and whatever else a page of the site names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.tags.append((tag, own))
        self.ids |= {own[key] for key in ("id", "name") if own.get(key)}
        if tag == "a" and own.get("href"):
            self.links.append(own["href"])
        loaded = tag != "a" and (own.get("src") or (tag == "link" and own.get("href")))
        if loaded and own.get("rel") not in ("canonical", "search", "index", "next", "prev"):
            self.loads.append(loaded)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_it_is_small_and_holds_every_page(site):
    assert {f"{name}.html" for name in PAGES} <= {path.name for path in site.glob("*.html")}
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 25e6
    for name in CHAPTERS:  # what a reader downloads is the notebook itself
        assert (site / f"notebooks/{name}.ipynb").read_bytes() == (
            ROOT / f"notebooks/{name}.ipynb"
        ).read_bytes()


def test_every_link_inside_leads_to_a_page_and_a_place_there(pages, site):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            address, fragment = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", address):
                continue
            goal = (path.parent / address).resolve() if address else path
            if not goal.exists() or (
                fragment and goal in pages and fragment not in pages[goal].ids
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_no_page_loads_anything_from_another_host(pages):
    loaded = {it for page in pages.values() for it in page.loads}
    assert loaded and not [it for it in loaded if re.match(r"(https?:)?//", it)]


def test_every_exercise_has_its_solution_folded_and_every_figure_a_description(pages, site):
    for name in CHAPTERS:
        solved = json.loads((ROOT / f"notebooks/solutions/{name}.ipynb").read_text("utf-8"))
        checks = [c for c in solved["cells"] if re.search(r"(?m)^check\.", "".join(c["source"]))]
        tags = pages[site / f"{name}.html"].tags
        folded = [own for tag, own in tags if tag == "details" and own.get("class") == "solution"]
        assert len(folded) == len(checks) >= 2, name
        assert not any("open" in own for own in folded)
        assert all(len(own.get("alt", "")) > 20 for tag, own in tags if tag == "img")
        assert not [own for _, own in tags if "Set-up" in str(own.get("title"))]


def test_every_claim_has_an_address_and_leads_to_a_cell(pages, site):
    page = pages[site / "ledger.html"]
    claims = json.loads((ROOT / "assets/claims.json").read_text(encoding="utf-8"))
    for claim in claims:
        name = claim["id"].lower()
        assert name in page.ids
        assert f"{claim['chapter']}.html#cell-{name}" in page.links, name
        assert f"ledger.html#{name}" in pages[site / f"{claim['chapter']}.html"].links


def test_the_glossary_leads_to_each_term_where_it_is_introduced(pages, site):
    links = [link for link in pages[site / "glossary.html"].links if "#term-" in link]
    assert len(links) == len(set(links)) > 60
    assert {link.partition(".html")[0] for link in links} <= set(CHAPTERS)


def test_the_other_edition_is_a_link_to_the_same_page_and_nothing_is_seen_of_it_yet(pages):
    jinja2 = pytest.importorskip("jinja2")
    text = (ROOT / "site/templates/languages.html").read_text(encoding="utf-8")
    template = jinja2.Template(text)
    both = dict(
        languages={"en": "English", "zh": "中文"}, pagename="_modules/a", content_root="../"
    )
    assert 'href="../zh/_modules/a.html"' in template.render(language="en", **both)
    assert 'href="../../_modules/a.html"' in template.render(language="zh", **both)
    assert not [own for page in pages.values() for _, own in page.tags if "hreflang" in own]


def test_docstrings_become_lists_and_code_whatever_they_hold():
    sphinx = runpy.run_path(str(ROOT / "site/conf.py"))["restructured"]
    lines = ["Does *this* to *args and a_b_.", "", "x, y: two things", "    on two lines."]
    lines += ["z: `a_b*`", "That is all.", "", "    code * more", "    code", "", "End."]
    sphinx(None, "", "", None, None, lines)
    assert lines == [
        *("Does *this* to \\*args and a\\_b\\_.", "", ""),
        *("- **x, y**: two things", "  on two lines.", "- **z**: `a_b*`", "", "That is all."),
        *("", "::", "", "    code * more", "    code", "", "End.", ""),
    ]


@pytest.fixture(scope="module")
def address(site):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    KEPT.mkdir(parents=True, exist_ok=True)
    installed = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """visit(page, width, theme): the page, and what went wrong while it was opened."""
    contexts = []

    def open_page(name, width=1280, theme="light", **options):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, **options
        )
        contexts.append(context)
        page, problems = context.new_page(), []
        page.on("console", lambda it: it.type == "error" and problems.append(it.text))
        page.on("pageerror", lambda it: problems.append(str(it)))
        page.on("requestfailed", lambda it: problems.append(it.url))
        page.on("request", lambda it: it.url.startswith(address) or problems.append(it.url))
        page.goto(f"{address}/{name}")
        page.wait_for_load_state("networkidle")
        return page, problems

    yield open_page
    for context in contexts:
        context.close()


@in_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_accessible(visit, name, width, theme):
    import axe_playwright_python

    page, problems = visit(f"{name}.html", width, theme)
    problems = [it for it in problems if not it.startswith("data:")]
    assert problems == []
    assert page.eval_on_selector_all("img", MISSING) == []
    assert page.eval_on_selector_all("img", WITHOUT_ALT) == []
    assert not page.evaluate(SIDEWAYS), "text scrolls sideways"
    assert page.locator("html").get_attribute("data-theme") == theme
    page.screenshot(path=KEPT / f"site_{name}_{width}_{theme}.png")
    if (width, theme) in ((360, "light"), (1280, "dark")):
        return  # seconds a page, and the other two have both widths and both themes
    script = Path(axe_playwright_python.__file__).with_name("axe.min.js")
    page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [it for it in found if it["impact"] in ("serious", "critical")]
    assert not [(it["id"], it["nodes"][0]["html"]) for it in serious]


@in_browser
@pytest.mark.parametrize("name", ["00_start_here", "04_gradient_flow", "07_the_family"])
def test_a_figure_moves_by_the_keyboard(visit, name):
    page, problems = visit(f"{name}.html")
    figure = page.locator(".moving")
    sliders = figure.locator("input")
    assert figure.locator("svg").count() == 1 and sliders.count() >= 2
    for number in range(sliders.count()):
        before = (
            figure.locator("svg").inner_html(),
            figure.locator("svg").get_attribute("aria-label"),
        )
        slider = sliders.nth(number)
        value = slider.input_value()
        slider.focus()
        page.keyboard.press("ArrowRight")
        if slider.input_value() == value:  # it stood at its end
            page.keyboard.press("ArrowLeft")
        assert figure.locator("svg").inner_html() != before[0]
        assert figure.locator("svg").get_attribute("aria-label") != before[1]
        assert (
            slider.get_attribute("aria-valuetext")
            == figure.locator("output").nth(number).inner_text()
        )
    assert problems == []


@in_browser
def test_without_a_script_the_still_picture_stands(visit):
    page, _ = visit("04_gradient_flow.html", java_script_enabled=False)
    assert page.locator(".moving svg").count() == 0
    assert page.locator(".moving noscript").count() == 1
    assert page.locator("img[alt*='radient']").count() >= 1


@in_browser
def test_the_ledger_is_filtered_and_a_claim_has_its_own_address(visit):
    page, _ = visit("ledger.html#n10")
    every = page.locator(".claim").count()
    page.get_by_label("Verdict").select_option("false")
    shown = page.locator(".claim:visible").count()
    assert 0 < shown < every and page.locator(".claim.false:visible").count() == shown
    assert page.get_by_role("status").inner_text() == f"{shown} of {every}"
    page.get_by_label("Chapter").select_option(index=1)
    assert page.locator(".claim:visible").count() < shown
    page.get_by_label("Verdict").select_option("")
    kinds = page.locator(".claim:visible").evaluate_all("all => all.map(it => it.className)")
    assert len({re.search(r"in-\w+", kind)[0] for kind in kinds}) == 1


@in_browser
@pytest.mark.parametrize(
    "word, where",
    [("shattered", "04_gradient_flow"), ("stride", "02_"), ("BatchNorm", "0")],
)
def test_search_finds(visit, word, where):
    page, problems = visit(f"search.html?q={word}")
    page.wait_for_selector("ul.search li a")
    found = page.locator("ul.search li a").evaluate_all("all => all.map(it => it.href)")
    assert [it for it in found if where in it] and problems == []
