"""The course in JupyterLab as a reader sees it: opened in a browser, run, and touched.

`python -m d2lres lab` serves a copy of the clone; headless Chromium opens a notebook and runs all of
its cells. A picture of each page as it was in the end is kept in build/browser.
"""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

KEPT = Path(__file__).resolve().parent.parent / "build" / "browser"
README = KEPT.parent.parent / "README.md"
WANTED = os.environ.get("CI") == "true" or os.environ.get("D2LRES_BROWSER")
MINUTE = 60_000  # milliseconds, as Playwright counts
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(sys.platform != "linux", reason="CI has its browser on Linux"),
    pytest.mark.skipif(not WANTED, reason="needs Chromium: D2LRES_BROWSER=1 runs it"),
]

# Watches for progress bars: they come and go between two looks of a test.
WATCH = """() => {
    window.bars = 0;
    new MutationObserver(changes => changes.forEach(change => change.addedNodes.forEach(node => {
        if (node.querySelector?.('.widget-hprogress') || node.matches?.('.widget-hprogress'))
            window.bars += 1;
    }))).observe(document.body, {childList: true, subtree: true});
}"""
# Every code cell has run when each has a number, and none the star of a cell that waits.
DONE = """cells => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')];
    return prompts.length == cells && prompts.every(it => /\\[\\d+\\]/.test(it.textContent));
}"""
REDRAWN = "before => (document.querySelector('.widget-interact img')?.src ?? before) != before"
MESSAGE = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.{}']"
SLIDERS = """
from d2lres import figures

def profile(depth, batch_norm, shortcut):
    norms = [10 ** (layer / depth) for layer in range(depth)]
    curves = {("residual" if shortcut else "plain", depth): norms}
    return figures.lines(curves, "layer", "gradient norm", log="y", title=f"BN: {batch_norm}")

figures.interactive(profile, depth=(8, 20, 110), batch_norm=(False, True), shortcut=(True, False))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory, clone, served):
    """Address and token of a JupyterLab started as `make lab` does it, in a copy of the clone."""
    config = tmp_path_factory.mktemp("lab")
    # Lab leaves cells out of the page that are out of sight; the test wants to see them all.
    settings = config / "lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("D2LRES_", "DISPLAY"))}
    environment |= {"PYTHONPATH": str(clone), "JUPYTER_CONFIG_DIR": str(config)}
    environment |= {"JUPYTER_RUNTIME_DIR": str(config), "IPYTHONDIR": str(config)}
    command = [sys.executable, "-m", "d2lres", "lab", "--", "--no-browser"]
    with served(command, clone, environment, config / "lab.log") as (address, _, token):
        yield address, token


@pytest.fixture
def page(request):
    from playwright.sync_api import sync_playwright

    installed = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        yield page
        page.screenshot(path=KEPT / f"{request.node.name}.png")
        browser.close()


def open_notebook(page, lab, notebook: Path):
    """Opens the notebook; JupyterLab then neither asks for anything nor calls the file changed."""
    address, token = lab
    page.goto(f"{address}/lab/tree/notebooks/{notebook.name}?reset&token={token}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=2 * MINUTE)
    page.wait_for_selector("text=/\\| Idle/", timeout=2 * MINUTE)  # else a command is lost
    page.wait_for_timeout(3000)  # for what may come unasked, now that the kernel is there
    assert page.locator(".Toastify__toast").all_inner_texts() == []
    assert page.locator(".jp-mod-dirty").count() == 0, "opened, and thereby changed"


def run_all_and_check(page, lab, notebook: Path):
    """Opens the notebook and runs all of its cells; then what must be true of every notebook."""
    open_notebook(page, lab, notebook)
    cells = nbformat.read(notebook, nbformat.NO_CONVERT).cells
    page.evaluate(WATCH)
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells >> nth=0")
    page.wait_for_selector("text='[*]:'", timeout=MINUTE)  # the numbers before are the build's
    seen = [c for c in cells if c.cell_type == "code" and "jupyter" not in c.metadata]  # not folded
    page.wait_for_function(DONE, arg=len(seen), timeout=5 * MINUTE)
    page.wait_for_selector("text=/\\| Idle/", timeout=MINUTE)
    check(page)


def check(page):
    assert page.locator(MESSAGE.format("error")).all_inner_texts() == []
    assert page.locator(MESSAGE.format("stderr")).all_inner_texts() == []
    pictures = page.locator(".jp-OutputArea-output img")
    seen = pictures.evaluate_all("all => all.map(img => [img.alt, img.naturalWidth])")
    assert seen and all(len(alt) > 20 and width > 100 for alt, width in seen), seen
    assert page.locator(".widget-hprogress:visible").count() == 0, "a progress bar stayed"
    text = page.locator(".jp-Notebook").inner_text()
    assert "Error displaying widget" not in text and "HBox(" not in text


def test_chapter_00_runs_in_jupyterlab_and_its_progress_bars_come_and_go(page, lab, clone):
    run_all_and_check(page, lab, clone / "notebooks/00_start_here.ipynb")
    shown = page.locator(".jp-CodeCell").first.inner_text()
    assert "Set-up" in shown and "import" not in shown, "the set-up cell is not folded"
    assert page.evaluate("window.bars") > 0, "no progress bar appeared"
    answer_wrongly_and_see_what_to_fix(page)


def answer_wrongly_and_see_what_to_fix(page):
    """Leaves build/browser/exercise_check.png, which the README shows."""
    cell = page.locator(".jp-CodeCell", has_text="check.error_rate(error_rate)")
    cell.locator(".cm-line", has_text="your code here").click()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Home")
    page.keyboard.insert_text("return 1 - evaluate(model, data).accuracy")
    page.keyboard.press("Control+Enter")
    verdict = cell.locator(".jp-OutputArea-output", has_text="Not yet: ")
    verdict.wait_for(timeout=MINUTE)
    page.keyboard.press("ArrowDown")  # away from the cell, and from its buttons
    task = page.locator(".jp-MarkdownCell", has_text="Exercise 1 (").last
    top, bottom = (it.bounding_box() for it in (task.locator("h3"), cell))
    area = {"x": bottom["x"] + 20, "y": top["y"] - 8, "width": bottom["width"] - 20}
    area["height"] = bottom["y"] + bottom["height"] - 4 - area["y"]
    page.screenshot(path=KEPT / "exercise_check.png", clip=area)
    assert verdict.inner_text().strip() in README.read_text(encoding="utf-8")  # in the alt text


def test_a_slider_moved_by_the_keyboard_redraws_the_picture_and_its_description(page, lab, clone):
    notebook = nbformat.read(clone / "notebooks/00_start_here.ipynb", nbformat.NO_CONVERT)
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in ("import d2lres", SLIDERS)]
    nbformat.write(notebook, clone / "notebooks/sliders.ipynb")
    run_all_and_check(page, lab, clone / "notebooks/sliders.ipynb")
    picture, handle = page.locator(".widget-interact img").first, page.locator(".noUi-handle").first
    before, description = picture.get_attribute("src"), picture.get_attribute("alt")
    handle.scroll_into_view_if_needed()
    handle.focus()
    page.keyboard.press("ArrowLeft")  # as a reader without a mouse moves it
    page.wait_for_function(REDRAWN, arg=before, timeout=MINUTE)
    assert picture.get_attribute("alt") != description
    check(page)
