"""Take the screenshots of the playground's page of docs: python docs/serving/screenshots.py http://127.0.0.1:8000.

The server serves the runs of the demo: nextitem serve runs/demo/runs/depth-decoder runs/demo/runs/sasrec
runs/demo/runs/tiger --impressions none. The pictures come from Chromium, without any change to what the server answers.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent
HISTORY = "history=10001&history=10042&history=10128"
# Name of the picture: width, colours, language, place in the page, and the part that is shown (None: the screen).
PICTURES: dict[str, tuple[int, str, str, str, str | None]] = {
    "lists": (1280, "light", "en-GB", f"lists?{HISTORY}&left=depth-decoder&right=sasrec", None),
    "walk": (
        1280,
        "light",
        "en-GB",
        f"lists?{HISTORY}&left=tiger&right=sasrec&only=category%3DTents",
        "#walk",
    ),
    "tree": (1280, "dark", "en-GB", "catalogue?model=tiger&codes=13", None),
    "phone": (360, "dark", "zh-CN", f"lists?{HISTORY}&left=depth-decoder&right=sasrec", None),
}


def take(browser: Browser, address: str, name: str) -> None:
    """Write one picture."""
    width, colours, language, place, part = PICTURES[name]
    scheme = "dark" if colours == "dark" else "light"
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, locale=language)
    page.goto(f"{address.rstrip('/')}/#{place}")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)
    target = FOLDER / f"playground_{name}.png"
    if part is None:
        page.screenshot(path=target)
    else:
        page.locator(part).screenshot(path=target)
    page.close()


def main(address: str) -> None:
    """Write all pictures into the folder of this file."""
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name in PICTURES:
            take(browser, address, name)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
