"""The page of examples/demo.py: what its button does, and all of it in a real browser."""

import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from itertools import chain
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
from conftest import moving_texture, write_video
from PIL import Image
from small_classifiers import load_script
from small_models import save_small_predictor, save_sure_classifier

from mme_hf.demonstration import Demonstration
from mme_hf.training.arguments import PretrainingArguments
from mme_hf.training.finetuning_arguments import FinetuningArguments

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
PROFILES = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE_MS = 120_000


def test_without_gradio_it_says_what_to_install():
    with (
        mock.patch.dict(sys.modules, {"gradio": None}),
        pytest.raises(SystemExit, match=r"pip install 'mme_hf\[demo\]'"),
    ):
        load_script(DEMO)


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("gradio", reason="gradio is not installed (extra demo)")
    return load_script(DEMO)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Flags that name a small model for everything."""
    root = tmp_path_factory.mktemp("models")
    return {
        "--pretraining_model": save_small_predictor(root / "pretrain"),
        "--model_name_or_path": save_sure_classifier(root / "finetune"),
    }


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos that can be shown, and that a browser can play."""
    if "libx264" not in av.codecs_available:
        pytest.skip("this build of FFmpeg cannot write H.264")
    root = tmp_path_factory.mktemp("videos")
    sizes = {"usual": (40, 48, 64), "upright": (12, 128, 72), "tiny": (12, 16, 16), "short": (2, 48, 64)}
    return {
        name: write_video(root / f"{name}.mp4", moving_texture(*size), fps=10, codec="libx264")
        for name, size in sizes.items()
    }


@pytest.fixture(scope="module")
def bad_videos(tmp_path_factory):
    """Files that cannot be shown, and what is to be said of each."""
    root = tmp_path_factory.mktemp("bad")
    (root / "text.mp4").write_text("no video at all\n" * 100)
    (root / "empty.mp4").touch()
    write_video(root / "photo.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    return {
        root / "text.mp4": "This video cannot be read",
        root / "empty.mp4": "This video cannot be read",
        root / "photo.mp4": "nothing can move",
    }


def test_what_is_missing_is_said_with_commands_that_exist(demo):
    """Every flag and script of the notes, asked of those who take them."""
    shown = demo.Page(Demonstration(), "unused").build().get_config_file()["components"]
    texts = [component["props"].get("value") for component in shown]
    assert demo.NO_CLASSIFIER in texts and demo.NO_PRETRAINED in texts
    takers = {"finetune.py": FinetuningArguments, "pretrain.py": PretrainingArguments}
    notes = (demo.NO_CLASSIFIER + demo.NO_PRETRAINED).replace("\\\n", "")
    commands = re.findall(r"examples/(\w+\.py)(.*)", notes)
    assert {name for name, _ in commands} == {"finetune.py", "pretrain.py", "demo.py"}
    for name, words in commands:
        assert (DEMO.parent / name).is_file()
        flags = words.split()
        if name == "demo.py":
            demo.parse_arguments(flags)
        else:
            assert all(hasattr(takers[name], flag[2:]) for flag in flags if flag.startswith("--"))


def test_the_button_shows_what_each_model_makes_of_the_video(demo, models, videos, tmp_path):
    page = demo.Page(Demonstration(*map(str, models.values())), tmp_path)
    page.build()
    video = str(videos["usual"])
    assert page.show_length(video).maximum == 4.0  # 40 frames, 10 a second
    scores, _ = page.show_labels(video, 0.5, False, 0.75, 0)
    assert set(scores) == {"fall", "jump", "run"} and abs(sum(scores.values()) - 1) < 1e-4
    tracks, words = page.show_tracks(video, 0.5, False, 0.75, 0)
    assert Path(tracks).stat().st_size and words.startswith("0.50 s to")
    *films, words = page.show_hidden_motion(video, 0.5, False, 0.75, None)
    assert all(Path(film).stat().st_size for film in films) and "75 % of the patches are hidden" in words


def test_what_cannot_be_shown_is_a_message(demo, bad_videos, tmp_path):
    page = demo.Page(Demonstration(), tmp_path)
    for (video, words), show in chain(
        ((item, page.show_length) for item in bad_videos.items()),
        ((item, lambda video: page.show_tracks(video, 0, False)) for item in bad_videos.items()),
        [((None, "No video is chosen"), lambda video: page.show_tracks(video, 0, False))],
    ):
        with pytest.raises(demo.gr.Error) as error:
            show(None if video is None else str(video))
        assert words in error.value.message and "Traceback" not in error.value.message
        assert "/" not in error.value.message  # where the server keeps an upload means nothing to a visitor


def test_mistakes_in_the_flags_end_with_one_line(demo, tmp_path):
    with pytest.raises(SystemExit, match=r"demo.py: error: pretraining_model .* there is no such folder") as stop:
        demo.main(["--pretraining_model", str(tmp_path / "none")])
    assert "\n" not in stop.value.code


@pytest.fixture(scope="module")
def address(models):
    """Where the page is, with both models, in a process of its own."""
    pytest.importorskip("gradio", reason="gradio is not installed (extra demo)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = chain.from_iterable(models.items())
    server = subprocess.Popen([sys.executable, str(DEMO), *map(str, words), "--server_port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(180):
            assert server.poll() is None, "the demo has ended"
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium to open the page with")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=PROFILES)
def page(browser, address, request):
    """The page, opened at a width. What its scripts complain of fails the test."""
    width, height = PROFILES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height})
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Show", exact=True).wait_for(timeout=PATIENCE_MS)
    yield page
    page.close()
    assert not complaints


def show(page, video: Path) -> None:
    """Upload a video and press the button."""
    page.set_input_files("input[type=file]", str(video))
    page.locator("#video video").wait_for(timeout=PATIENCE_MS)  # or gradio asks to wait for the upload
    page.get_by_role("button", name="Show", exact=True).click()


def check_is_shown(page) -> None:
    """Wait until all results are there, and check that they can be seen."""
    page.get_by_text("patches are hidden").wait_for(timeout=PATIENCE_MS)
    assert page.locator(".toast-body").all_inner_texts() == []
    assert page.get_by_test_id("label-output-value").inner_text() in ("fall", "jump", "run")

    for name in ("tracks.mp4", "seen.mp4", "motion.mp4"):
        film = page.locator(f"video[src*='{name}']")
        page.wait_for_function(
            "name => document.querySelector(`video[src*='${name}']`)?.readyState >= 2", arg=name, timeout=PATIENCE_MS
        )
        assert film.evaluate("film => film.error") is None
        pixels = pixels_of(film.screenshot())
        assert pixels.std() > 8, f"{name} is blank"
    # Nothing is cut off at the right, or to be scrolled to.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(float)


@pytest.mark.slow
def test_a_video_is_uploaded_and_shown(page, videos, tmp_path):
    show(page, videos["usual"])
    check_is_shown(page)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert pixels_of((tmp_path / "page.png").read_bytes()).std() > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["upright", "tiny", "short"])
@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_videos_of_any_shape_are_shown(page, videos, name):
    show(page, videos[name])
    check_is_shown(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_a_webm_is_shown(page, tmp_path):
    if "libvpx-vp9" not in av.codecs_available:
        pytest.skip("this build of FFmpeg cannot write VP9")
    show(page, write_video(tmp_path / "clip.webm", moving_texture(20, 48, 64), codec="libvpx-vp9"))
    check_is_shown(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_a_video_that_the_browser_cannot_play_is_shown_all_the_same(page, tmp_path):
    page.set_input_files("input[type=file]", str(write_video(tmp_path / "clip.avi", moving_texture(20, 48, 64))))
    page.locator(".toast-body").filter(has_text="Video not playable").wait_for(timeout=PATIENCE_MS)
    page.locator(".toast-close").click()
    page.get_by_role("button", name="Show", exact=True).click()
    check_is_shown(page)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("page", ["phone"], indirect=True)
def test_a_file_that_cannot_be_read_is_a_message_and_the_page_goes_on(page, videos, bad_videos, number):
    path, words = list(bad_videos.items())[number]
    page.set_input_files("input[type=file]", str(path))
    page.locator(".toast-body").filter(has_text=words).first.wait_for(timeout=PATIENCE_MS)
    assert "Traceback" not in page.inner_text("body")
    page.reload()
    page.get_by_role("button", name="Show", exact=True).wait_for(timeout=PATIENCE_MS)
    show(page, videos["usual"])
    check_is_shown(page)
