"""The course in JupyterLab as a reader sees it: opened in a browser, run, and touched.

`python -m d2lres lab` serves a copy of the clone; headless Chromium opens a chapter and runs all of
its cells. Pictures of what went wrong are kept in build/browser.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "browser"
CI = os.environ.get("CI") == "true"
MINUTE = 60_000  # milliseconds, as Playwright counts
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(sys.platform != "linux", reason="CI has its browser on Linux"),
    pytest.mark.skipif(
        not (CI or os.environ.get("D2LRES_BROWSER")),
        reason="runs two chapters in a browser, for minutes: D2LRES_BROWSER=1",
    ),
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
DONE = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    return prompts.length > 5 && prompts.every(prompt => /\\[\\d+\\]/.test(prompt.textContent));
}"""
ERROR = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"
STDERR = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address and token of a JupyterLab started as `make lab` does it, in a copy of the clone."""
    base = tmp_path_factory.mktemp("lab")
    clone, settings = base / "clone", base / "settings"
    for name in ("d2lres", "assets", "notebooks"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Lab leaves cells out of the page that are out of sight; the test wants to see them all.
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("D2LRES_", "DISPLAY"))}
    environment |= {
        "PYTHONPATH": str(clone),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
        "JUPYTERLAB_WORKSPACES_DIR": str(base / "workspaces"),
        "IPYTHONDIR": str(base / "ipython"),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "d2lres", "lab", "--", f"--port={port}", "--no-browser"]
    log = base / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=clone, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(120):
            found = re.search(rf"http://127\.0\.0\.1:{port}/lab\S*\?token=(\w+)", log.read_text())
            if found or server.poll() is not None:
                break
            time.sleep(1)
        assert found, log.read_text()
        yield f"http://127.0.0.1:{port}", found[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


@pytest.fixture(scope="module")
def browser():
    missing = pytest.fail if CI else pytest.skip
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("playwright is not installed: make test installs it")
    installed = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except Error as error:
            missing(f"no browser: install chromium, or run 'playwright install chromium' ({error})")
        yield browser
        browser.close()


@contextmanager
def after_run_all(browser, lab, chapter):
    """The page of a chapter whose cells have all run; a failure leaves its picture behind."""
    address, token = lab
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    try:
        page.goto(f"{address}/lab/tree/notebooks/{chapter}.ipynb?reset&token={token}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=2 * MINUTE)
        page.wait_for_selector("text=/\\| Idle/", timeout=2 * MINUTE)  # else the command is lost
        page.evaluate(WATCH)
        page.click("text=Run >> nth=0")
        page.click("text=Run All Cells >> nth=0")
        page.wait_for_selector("text='[*]:'", timeout=MINUTE)  # the numbers before are the build's
        page.wait_for_function(DONE, timeout=5 * MINUTE)
        page.wait_for_selector("text=/\\| Idle/", timeout=MINUTE)
        yield page
    except BaseException:
        KEPT.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=KEPT / f"{chapter}.png")
        raise
    finally:
        page.close()


def check(page):
    """What must be true of every chapter that was run."""
    assert page.locator(ERROR).all_inner_texts() == []
    assert page.locator(STDERR).all_inner_texts() == []
    pictures = page.locator(".jp-OutputArea-output img")
    alts = [pictures.nth(i).get_attribute("alt") or "" for i in range(pictures.count())]
    assert alts and all(len(alt) > 20 for alt in alts), alts
    sizes = pictures.evaluate_all("all => all.map(img => img.naturalWidth)")
    assert min(sizes) > 100, sizes
    assert page.evaluate("window.bars") > 0, "no progress bar appeared"
    assert page.locator(".widget-hprogress:visible").count() == 0, "a progress bar stayed"
    text = page.locator(".jp-Notebook").inner_text()
    assert "Error displaying widget" not in text and "HBox(" not in text


def test_chapter_00_runs_in_jupyterlab(browser, lab):
    with after_run_all(browser, lab, "00_start_here") as page:
        check(page)


def test_chapter_04_runs_in_jupyterlab_and_its_sliders_redraw_the_picture(browser, lab):
    with after_run_all(browser, lab, "04_gradient_flow") as page:
        check(page)
        picture = page.locator(".widget-interact img").first
        before = picture.get_attribute("src"), picture.get_attribute("alt")
        handle = page.locator(".noUi-handle").first
        handle.scroll_into_view_if_needed()
        handle.focus()
        page.keyboard.press("ArrowLeft")  # as a reader without a mouse moves it
        for _ in range(300):
            after = picture.get_attribute("src", timeout=MINUTE), picture.get_attribute("alt")
            if after[0] != before[0]:
                break
            time.sleep(0.1)
        assert after[0] != before[0], "the slider moved and the picture stayed"
        assert after[1] != before[1], "the new picture has the old one's description"
        check(page)
