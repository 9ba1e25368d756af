"""Remake demo.jpg, the demo's page with the sample clip Big Buck Bunny: `python docs/make_demo_picture.py`.

Its flags are those of `examples/demo.py`; without any it takes the model that the README's first command leaves in
outputs/pretrain. Needs the extras `samples` and `demo`, playwright, and an installed chromium.
"""

import io
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from mme_hf.data import load_sample_records

FOLDER = Path(__file__).parent
DEMO = FOLDER.parent / "examples" / "demo.py"
STEM = "bigbuckbunny"
START_SECONDS = 1.4  # the rabbit moves, and so does the camera
VIEWPORT = {"width": 1280, "height": 900}
PATIENCE_MS = 180_000
# The other sample clips may not be shown here: their licences are not known.
HIDDEN = "div:has(> .gallery) { display: none; }"


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(server: subprocess.Popen, port: int) -> None:
    """Return when the server listens; raise RuntimeError if it ends before."""
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"{DEMO.name} ended with status {server.returncode}.")


def show(page: Page, video: str) -> bytes:
    """Upload the video, press the button, and return a PNG of the page with all its results."""
    page.set_input_files("input[type=file]", video)
    page.locator("#video video").wait_for(timeout=PATIENCE_MS)
    # The slider begins as long as a second, and is set to the video's length when that is known.
    page.wait_for_function("document.querySelector('input[type=range]').max > 1", timeout=PATIENCE_MS)
    page.get_by_label("number input for The clip begins at (seconds)").fill(str(START_SECONDS))
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Show", exact=True).click()
    page.get_by_text("patches are hidden").wait_for(timeout=PATIENCE_MS)
    page.wait_for_function(
        "[...document.querySelectorAll('video')].every(film => film.readyState >= 2)", timeout=PATIENCE_MS
    )
    page.evaluate("document.querySelectorAll('video').forEach(film => { film.pause(); film.currentTime = 0.3; })")
    page.wait_for_timeout(1000)  # for the frame to be drawn
    return page.screenshot(full_page=True, style=HIDDEN)


def main() -> None:
    """Write demo.jpg beside this file, small, for a README that loads fast."""
    (video,) = (row["video"]["path"] for row in load_sample_records().dataset if STEM in row["video"]["path"])
    port = free_port()
    flags = sys.argv[1:] or ["--pretraining_model", "outputs/pretrain"]
    server = subprocess.Popen([sys.executable, DEMO, *flags, "--server_port", str(port)])
    try:
        wait_for(server, port)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=VIEWPORT)
            page.goto(f"http://127.0.0.1:{port}")
            with Image.open(io.BytesIO(show(page, video))) as picture:
                picture.convert("RGB").save(FOLDER / "demo.jpg", quality=85, optimize=True)
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
