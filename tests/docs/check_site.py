"""Build the site and look at every page in a browser, as a reader with a phone or a desk would.

python -m tests.docs.check_site
python -m tests.docs.check_site --screenshots shots --only concepts/

Every page is opened in light and in dark mode, at the width of a phone and of a desk. Nothing may
go wrong there: no error on the console, no image or file that is missing, no request to another
host, no horizontal scrolling, no text whose contrast is below WCAG AA. The first page must be
small, the build quick, and the search must find what people look for. Needs Chromium and the extra
`browser`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = {"phone": 390, "desk": 1280}
SCHEMES = ("light", "dark")
WANTED = ("SHMModule", "is_init", "clamp", "hyperparameters")
MAX_BUILD_SECONDS = 60
MAX_FIRST_PAGE_BYTES = 500_000
# pixels at the desk, but for what grows with every release
MAX_HEIGHT = 8_000
MAY_BE_LONGER = ("changelog/",)
# pixels that text of a figure is high on a phone
MIN_TEXT = 8.0
# nothing that a browser does for itself may look like a request of the page
FLAGS = [
    "--disable-background-networking", "--disable-component-update", "--disable-gpu",
    "--disable-quic", "--disable-sync", "--no-first-run",
]  # fmt: skip
# every page has the browser search through all of them, which takes it a second; those that are
# looked at get an index of nothing
INDEX = "search/search_index.json"
# what a reader with normal sight meets: text that is too faint, pictures that say nothing, links
# without a name
RULES = ["color-contrast", "duplicate-id", "image-alt", "link-name"]
MISSING_IMAGES = """() => [...document.images]
    .filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"""
IMAGES = """() => [...document.querySelectorAll('article img')]
    .map(image => [image.src, image.clientWidth])"""
# how far the page is wider than the screen, and what sticks out
OVERFLOW = """() => {
    const width = document.documentElement.clientWidth
    if (document.documentElement.scrollWidth <= width) return []
    return [...document.querySelectorAll('article *')]
        .filter(x => x.getBoundingClientRect().right > width + 1)
        .slice(0, 3).map(x => x.tagName + ' ' + x.className + ' ' + x.textContent.slice(0, 40))
        .concat(['page is ' + document.documentElement.scrollWidth + ' px wide'])
}"""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder as GitHub Pages does: text is compressed. Counts what it sends."""

    sent: dict[str, int] = {}  # noqa: RUF012 - one server per process

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        if path.suffix in {".css", ".html", ".js", ".json", ".svg", ".xml"}:
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.sent[self.path] = len(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def find_browser() -> str | None:
    """Path of the system's Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def build(site: Path) -> float:
    """Build the site without a warning and return the seconds it took."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", site],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True,
    )  # fmt: skip
    return time.perf_counter() - start


@contextmanager
def serve(site: Path) -> Iterator[str]:
    """Serve the site on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def smallest_text(path: Path, width: float) -> float | None:
    """Size of the smallest text of a figure, in pixels of a picture that is `width` pixels wide.

    A PNG says it itself, see `torchrl_shm.figures.style.save`; `None` if it does not. A figure
    without text has text of any size.
    """
    if path.suffix == ".svg":
        text = path.read_text()
        sizes = [float(size) for size in re.findall(r'font-size[=:]\s*"?([\d.]+)', text)]
        box = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+)', text)
        own = float(box[1]) if box else width
        return min(sizes, default=math.inf) * width / own
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            size = image.info.get("Smallest text")
            if size is None:
                return None
            return math.inf if size == "none" else float(size) * width / image.width
    return math.inf


def look_at_figures(page: Any, url: str, site: Path) -> list[str]:
    """Say which figures have text that is too small."""
    found: list[str] = []
    for source, width in page.evaluate(IMAGES):
        name = source.removeprefix(url)
        size = smallest_text(site / name, width)
        if size is None:
            found.append(f"{name} does not say how small its text is; save it by figures/style.py")
        elif size < MIN_TEXT:
            found.append(f"text of {size:.1f} pixels in {name}, {MIN_TEXT:g} are needed")
    return found


def look(page: Any, url: str, address: str, axe: Any = None) -> list[str]:
    """Open one page and say what is wrong with it; with `axe`, also what is hard to read."""
    found: list[str] = []

    def on_request(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            found.append(f"request to {request.url}")

    def on_response(response: Any) -> None:
        if response.status >= 400:
            found.append(f"{response.status} for {response.url}")

    def on_console(message: Any) -> None:
        if message.type == "error":
            found.append(f"console: {message.text}")

    listeners = {
        "request": on_request,
        "response": on_response,
        "console": on_console,
        "pageerror": lambda error: found.append(f"script: {error}"),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    page.goto(url + address, wait_until="load")
    found += [f"image missing: {image}" for image in page.evaluate(MISSING_IMAGES)]
    found += [f"sticks out: {what}" for what in page.evaluate(OVERFLOW)]
    if not page.title():
        found.append("no title")
    if axe is not None:
        # takes most of the time; what stands around the articles is that of the first page
        found += ask(page, axe, RULES, "article" if address else None)
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return found


def ask(page: Any, axe: Any, rules: list[str], context: str | None = None) -> list[str]:
    """Say which rules the open page, or a part of it, breaks."""
    # without the details of what is right, which take time
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    return [
        f"{violation['id']}: {node['html'][:120]}: "
        + (node["any"][0]["message"] if node["any"] else violation["help"])
        for violation in axe.run(page, context=context, options=options).response["violations"]
        for node in violation["nodes"]
    ]


def search(page: Any, url: str, word: str) -> bool:
    """Type a word into the search and look whether a result has it."""
    page.goto(url, wait_until="networkidle")
    page.click("input[name=query]")
    page.keyboard.type(word)
    # the index is searched by a worker
    page.wait_for_timeout(2_000)
    found = page.locator(".md-search-result__item").all_inner_texts()
    return any(word.lower() in text.lower() for text in found)


def check(
    site: Path, executable: str, only: str, screenshots: Path | None, quick: bool
) -> list[str]:
    """Look at all pages; return one line per fault."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    axe, faults = Axe(), []
    addresses = sorted(
        path.relative_to(site).as_posix().removesuffix("index.html")
        for path in site.rglob("*.html")
    )
    addresses = [address for address in addresses if address.startswith(only)]
    with serve(site) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        print(f"{'page':<42}" + "".join(f"{s + ' ' + w:>13}" for s in SCHEMES for w in WIDTHS))
        views = {
            (scheme, width): browser.new_context(
                color_scheme=scheme, viewport={"width": pixels, "height": 844}
            ).new_page()
            for scheme in SCHEMES
            for width, pixels in WIDTHS.items()
        }
        nothing = json.loads((site / INDEX).read_text()) | {"docs": []}
        for page in views.values():
            page.route(url + INDEX, lambda route: route.fulfill(json=nothing))
        for number, address in enumerate(addresses):
            cells = []
            turn = SCHEMES[number % len(SCHEMES)]
            for (scheme, width), page in views.items():
                # the first page is read as a whole, and stands for the others in both modes
                if quick and address and scheme != turn:
                    cells.append(f"{'-':>13}")
                    continue
                # colors and names are the same at both widths
                found = look(page, url, address, axe if width == "desk" else None)
                if width == "phone":
                    found += look_at_figures(page, url, site)
                elif not address.startswith(MAY_BE_LONGER):
                    height = page.evaluate("document.documentElement.scrollHeight")
                    if height > MAX_HEIGHT:
                        found.append(f"{height} pixels high, {MAX_HEIGHT} are allowed")
                faults += [f"{address or 'home'} ({scheme}, {width}): {fault}" for fault in found]
                cells.append(f"{len(found) or 'ok':>13}")
                if screenshots is not None:
                    name = address.strip("/").replace("/", "_") or "home"
                    page.screenshot(
                        path=screenshots / f"{name}_{scheme}_{width}.png", full_page=True
                    )
            print(f"{address or 'home':<42}" + "".join(cells), flush=True)
        # a browser that has been nowhere yet
        fresh = browser.new_context().new_page()
        Handler.sent.clear()
        fresh.goto(url, wait_until="networkidle")
        size = sum(Handler.sent.values())
        print(f"first page: {size / 1000:.0f} kB in {len(Handler.sent)} files")
        if size > MAX_FIRST_PAGE_BYTES:
            faults.append(f"first page has {size} bytes, {MAX_FIRST_PAGE_BYTES} are allowed")
        for word in WANTED:
            hit = search(fresh, url, word)
            print(f"search for {word}: {'found' if hit else 'not found'}")
            if not hit:
                faults.append(f"search does not find {word}")
        browser.close()
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of every page")
    parser.add_argument("--only", default="", help="beginning of the addresses to look at")
    parser.add_argument(
        "--quick", action="store_true",
        help="look at pages in light and dark mode in turn, not at each in both",
    )  # fmt: skip
    options = parser.parse_args()
    executable = find_browser()
    if executable is None:
        print(f"no browser: install one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 1
    if options.screenshots is not None:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        seconds = build(Path(folder))
        print(f"built in {seconds:.1f} s")
        faults = check(Path(folder), executable, options.only, options.screenshots, options.quick)
    if seconds > MAX_BUILD_SECONDS:
        faults.append(f"the build took {seconds:.0f} s, {MAX_BUILD_SECONDS} are allowed")
    print("\n".join([*faults, f"{len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
