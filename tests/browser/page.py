#!/usr/bin/env python3
"""The web page and /docs in a real browser, against the real server.

    python3 tests/browser/page.py [--screenshots DIR]

Drops example pictures on the page, adds them to the index and checks what it shows: the vector,
the encoder's view, the neighbours with their thumbnails, and a clear error for a text named .jpg;
then, on a server with keys, that it asks for one and works with it.
Any error on the console or against the content security policy fails. Needs the built server, a
Chromium on PATH, and PyPI's playwright, which it installs into a virtual environment of its own.
Without a Chromium it says so and ends well.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving import ROOT, TARGET, program, served  # noqa: E402

PLAYWRIGHT = "playwright==1.65.2"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def in_own_environment():
    """Runs this script again inside a virtual environment that has playwright."""
    home = TARGET / "browser-venv"
    python = home / "bin/python"
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", PLAYWRIGHT], check=True)
        (home / "ready").touch()
    os.execv(python, [python, __file__, *sys.argv[1:]])


def until(page, condition):
    """Waits for a JavaScript condition. (The page's policy forbids the evaluation that
    wait_for_function relies on.)"""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


def check_page(page, url, shots):
    page.goto(url)
    until(page, "document.querySelector('#model').textContent.includes('encoder')")
    for name in ("outwear-1", "shoes-1", "skirt-1", "hat-1"):
        page.set_input_files("#file", ROOT / f"examples/{name}.jpg")
        page.wait_for_selector("#add:not([hidden])")
        until(page, f"document.querySelector('#id').value === '{name}'")
        page.click("#add button")
        until(page, f"document.querySelector('#added').value.includes('{name}')")
    page.set_input_files("#file", ROOT / "examples/outwear-2.jpg")
    page.wait_for_selector("#near:not([hidden])")
    until(page, "document.querySelectorAll('#neighbours li').length === 4")
    until(page, "[...document.querySelectorAll('#neighbours img')].every(i => i.naturalWidth > 0)")
    ids = page.locator("#neighbours .id").all_text_contents()
    scores = [float(s) for s in page.locator("#neighbours .score").all_text_contents()]
    assert ids[0].startswith("outwear"), f"nearest to an outwear: {ids}"
    assert scores == sorted(scores, reverse=True), scores
    page.wait_for_selector("#vector:not([hidden])")
    until(page, "document.querySelector('#seen-image').naturalWidth > 0")
    assert "pixels" in page.locator("#seen-size").text_content()
    if shots:
        page.screenshot(path=shots / "page.png", full_page=True)


def check_key(page, url, key):
    """A server with keys: the page asks for one, and works with it until the tab is closed."""
    page.goto(url)
    page.wait_for_selector("#key-form:not([hidden])")
    assert "key_needed" in page.locator("#problem").text_content()
    page.fill("#key", key)
    page.click("#key-form button[type=submit]")
    until(page, "document.querySelector('#model').textContent.includes('encoder')")
    assert page.locator("#key-form").is_hidden() and page.locator("#problem").is_hidden()
    page.reload()
    until(page, "document.querySelector('#model').textContent.includes('encoder')")
    page.set_input_files("#file", ROOT / "examples/shoes-1.jpg")
    page.wait_for_selector("#add:not([hidden])")
    page.click("#add button")
    until(page, "document.querySelectorAll('#neighbours li').length === 1")
    until(page, "[...document.querySelectorAll('#neighbours img')].every(i => i.naturalWidth > 0)")
    page.click("#key-open")
    page.click("#key-forget")
    assert page.evaluate("sessionStorage.length") == 0


def check_bad_picture(page, scratch, shots):
    text = scratch / "text.jpg"
    text.write_text("this is no picture\n")
    page.set_input_files("#file", text)
    page.wait_for_selector("#problem:not([hidden])")
    said = page.locator("#problem").text_content()
    assert "unsupported_format" in said, said
    assert page.locator("#near").is_hidden(), "no neighbours beside an error"
    if shots:
        page.screenshot(path=shots / "problem.png", full_page=True)


def check_docs(page, url, shots):
    page.goto(f"{url}/docs")
    page.wait_for_selector(".opblock-summary-path")
    paths = " ".join(page.locator(".opblock-summary-path").all_text_contents())
    assert "/embed" in paths.replace("\u200b", "") and "/search" in paths.replace("\u200b", ""), paths
    if shots:
        page.screenshot(path=shots / "docs.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--screenshots", type=Path)
    shots = parser.parse_args().screenshots
    chromium = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if not chromium:
        print("page: skipped, there is no Chromium on PATH")
        return
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        in_own_environment()
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="latentd-page-") as scratch, served() as url:
        scratch = Path(scratch)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            errors = []
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            check_page(page, url, shots)
            check_docs(page, url, shots)
            assert not errors, errors
            page.goto(url)
            check_bad_picture(page, scratch, shots)
            keys = scratch / "keys.toml"
            new = [program("latentd"), "key", "new", "--name", "page", "--role", "write", "--file", keys]
            key = subprocess.run(new, check=True, capture_output=True, text=True).stdout.strip()
            with served("--api-keys-file", keys) as guarded:
                check_key(page, guarded, key)
            browser.close()
    print("page: passed")


if __name__ == "__main__":
    main()
