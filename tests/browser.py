"""A headless Chromium, and what a test may ask of any page: errors, overflow, links, figures, text on text.

The browser is Debian's `chromium`; playwright drives it, and its own download is not used.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Marks of a test module that needs the browser.
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
#: Widths and colour schemes in which a page must hold.
SCREENS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as driver:
        # Chromium refuses its sandbox as root; pages come from this test alone.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, width: int, scheme: str, height: int = 900) -> Iterator[tuple[Page, list[str]]]:
    """The page, and a list that fills with console errors, exceptions and failed requests."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
    try:
        page.goto(url)
        yield page, complaints
    finally:
        page.close()


def open_all(page: Page) -> int:
    """Click every closed <details>, outermost first; returns how many. Each must show what it holds."""
    clicked = 0
    while (closed := page.locator("details:not([open]) > summary:visible")).count():
        closed.first.click()
        clicked += 1
    hidden = page.evaluate(
        "[...document.querySelectorAll('details')].filter(d => d.scrollHeight <= d.querySelector('summary')"
        ".offsetHeight || !d.open).map(d => d.textContent.slice(0, 60))"
    )
    assert hidden == [], f"opened, and still empty: {hidden}"
    return clicked


def wider_than_the_screen(page: Page) -> list[str]:
    """Elements that reach beyond the right edge and cannot be scrolled to in a box of their own."""
    return page.evaluate(
        """() => {
          const boxed = e => e && (getComputedStyle(e).overflowX == 'auto' || boxed(e.parentElement));
          const found = [...document.body.querySelectorAll('*')].filter(e => {
            if (e.closest('svg') && e.tagName != 'text') return false;
            const box = e.getBoundingClientRect();
            return box.width && (box.right > innerWidth + 1 || box.left < -1) && !boxed(e);
          }).map(e => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`);
          if (document.documentElement.scrollWidth > innerWidth) found.push('the page scrolls sideways');
          return found;
        }"""
    )


def columns_out_of_reach(page: Page) -> list[str]:
    """Tables of which some cell is hidden, or cannot be scrolled into its box."""
    return page.evaluate(
        """() => [...document.querySelectorAll('table')].filter(table => {
          const box = table.parentElement;
          box.scrollLeft = box.scrollWidth;
          const edge = box.getBoundingClientRect().right + 1;
          const cells = [...table.querySelectorAll('td')].map(cell => cell.getBoundingClientRect());
          const isOut = cells.some(cell => !cell.width || !cell.height || cell.right > edge);
          box.scrollLeft = 0;
          return isOut;
        }).map(table => table.textContent.trim().slice(0, 60))"""
    )


def broken_links(page: Page, file: Path) -> list[str]:
    """Anchors without a target, and files that do not exist relative to the page."""
    found = []
    ids = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
    for href in page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"):
        parts = urlparse(href)
        if parts.scheme:
            continue
        if parts.path and not (file.parent / unquote(parts.path)).exists():
            found.append(href)
        if not parts.path and parts.fragment not in ids:
            found.append(href)
    return found


#: Text boxes of each figure's panels, as [panel, text, left, top, right, bottom], and the drawn marks of each.
_PANELS = """() => [...document.querySelectorAll('figure .panels svg[role=img]')].map(svg => {
  const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const colour = e => `${e.style.stroke} ${e.style.fill}`;
  const inks = ['ink', 'muted', 'grid', 'page'].map(name => `var(--${name})`);
  const isVisible = e => { const b = e.getBoundingClientRect(); return b.width + b.height > 0; };
  const drawn = [...svg.querySelectorAll('path, use')].filter(e => !e.closest('defs') && isVisible(e)
    && colour(e).includes('var(--') && !inks.some(ink => colour(e).includes(ink)));
  return {
    title: svg.getAttribute('aria-label'), box: box(svg),
    texts: [...svg.querySelectorAll('text')].map(e => [e.textContent, ...box(e)]),
    marks: drawn.length,
    fixed: [...svg.querySelectorAll('*')].map(colour).filter(c => /#|rgb/.test(c)),
  };
})"""


def panels(page: Page) -> list[dict[str, Any]]:
    return page.evaluate(_PANELS)


def clipped_texts(panel: dict[str, Any]) -> list[str]:
    """Texts that stick out of their panel: in the browser over a neighbour or the edge, in a file cut off."""
    left, top, right, bottom = panel["box"]
    return [t for t, a, b, c, d in panel["texts"] if a < left - 2 or b < top - 3 or c > right + 2 or d > bottom + 3]


def texts_on_texts(panel: dict[str, Any], slack: float = 2.0) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap by more than `slack` pixels both ways."""
    found = []
    for i, (one, left, top, right, bottom) in enumerate(panel["texts"]):
        for two, left2, top2, right2, bottom2 in panel["texts"][i + 1 :]:
            across, down = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
            if across > slack and down > 2 * slack:
                found.append((one, two))
    return found
