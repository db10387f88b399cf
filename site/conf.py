"""Sphinx's settings of the web edition. `build.py` writes its pages and calls it."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
LANGUAGE = os.environ.get("D2LRES_LANGUAGE", "en")

project, author, copyright = "d2lres", "the developers of d2lres", "the developers of d2lres"
language = LANGUAGE
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True  # feed=batches, and not where that function lies in memory
autodoc_inherit_docstrings = False  # that of nn.Module.forward is no text of ours
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}
default_role = "code"

html_theme = "sphinx_book_theme"
html_title = "d2lres"
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_copy_source = False
html_show_sphinx = False
templates_path = ["templates"]
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    "navbar_persistent": [],
    "article_header_end": ["languages", "article-header-buttons"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# The other editions, {code: its name}: with a second one each page links to itself there.
html_context = {"languages": {"en": "English"}, "default_mode": "auto"}


def restructured(app, what, name, obj, options, lines) -> None:
    """Docstrings are plain text: what they say of an argument becomes an entry of a list, and what
    stands indented after an empty line stays as it is."""
    out: list[str] = []
    entry = code = False
    for line in lines:
        named = re.match(r"(\w+(?:, \w+)*): +(\S.*)", line)
        if not line.strip():
            entry = False
        elif named:
            out += [*([""] * (not entry)), f"- **{named[1]}**: {plain(named[2])}"]
            entry, code = True, False
            continue
        elif line.startswith("    ") and not entry:
            out += ([] if code else ["::", ""]) + [line]
            code = True
            continue
        elif line.startswith("    "):
            line = "  " + plain(line.strip())
        else:
            out += [""] * entry
            entry, code, line = False, False, plain(line)
        out.append(line)
    lines[:] = [*out, ""]


def plain(text: str) -> str:
    """`text` with the signs of markup escaped, but for those of code."""
    parts = re.split(r"(`[^`]+`)", text)
    lone = r"(\*(?![^*\s][^*]*\*)(?<!\w\*)|[_|\\])"
    return "".join(it if it[:1] == "`" else re.sub(lone, r"\\\1", it) for it in parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", restructured)
