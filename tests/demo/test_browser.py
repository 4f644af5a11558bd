"""The page in a real browser, served by the command."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.demo.examples import Example
from fastcomposer.utils.provenance import read_metadata

MINI = CONFIG_FOLDER.parent / "data" / "mini"
PATIENCE = 90_000  # ms: the machine may be busy
PROMPT = "a man <|image|> and a woman <|image|> on the beach"


@dataclass(frozen=True)
class Served:
    """A page that is being served."""

    address: str
    folder: Path  # working directory of the command, empty before
    temporary: Path  # for temporary files
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The command with two sampling steps, one request at a time."""
    folder, temporary = tmp_path_factory.mktemp("called"), tmp_path_factory.mktemp("temporary")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = [sys.executable, "-m", "fastcomposer.cli.demo", f"server.port={port}", f"model.base={MINI}"]
    call += [f"checkpoint={MINI / 'fastcomposer.safetensors'}", "sampler.num_inference_steps=2", "threads=1"]
    call += ["limits.megabytes=0.3"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        call, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process)
        yield Served(address, folder, temporary, process)
    finally:
        process.kill()
        process.communicate()


def _wait_for(address: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise TimeoutError(address)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or Playwright's own."""
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = shutil.which("chromium") or shutil.which("google-chrome") or (own.exists() and str(own))
        if not found:
            pytest.skip("no browser: neither chromium nor google-chrome is there, nor Playwright's own")
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Any]:
    """Open the page in a window of some size; whatever it asks others for is an error."""
    contexts, elsewhere, errors = [], [], []

    def see(request: Any) -> None:
        if not request.url.startswith((served.address, "data:", "blob:")):
            elsewhere.append(request.url)

    def open_(width: int = 1280) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("request", see)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.address)
        expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible(timeout=PATIENCE)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert errors == []


def upload(page: Page, *files: Path | str) -> None:
    page.locator("#fc-tray input[type=file]").set_input_files([str(file) for file in files])


def people(page: Page) -> Any:
    return page.locator("#fc-people img")


def generated(page: Page) -> Any:
    return page.locator("#fc-gallery img")


def set_steps(page: Page, steps: int) -> None:
    """Type the number of steps again until the slider shows it: the settings may not be mounted yet."""
    slider = page.get_by_label("range slider for Steps")
    for _ in range(20):
        page.get_by_label("number input for Steps").fill(str(steps))
        page.get_by_label("number input for Steps").press("Enter")
        page.wait_for_timeout(500)  # a value that is taken back is taken back by now
        if slider.input_value() == str(steps):
            return
    pytest.fail(f"the slider never showed {steps} steps")


def scrolls_sideways(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_two_people_from_upload_to_file(open_page: Any, examples: list[Example], tmp_path: Path) -> None:
    page = open_page()
    upload(page, *examples[0].references)
    expect(people(page)).to_have_count(2, timeout=PATIENCE)
    notice = page.locator("#fc-notice")
    expect(notice).to_contain_text("Write a prompt", timeout=PATIENCE)
    page.locator("#fc-prompt textarea").fill("a man and a woman on the beach")
    expect(notice).to_contain_text("There are images of 2 people, but no word is marked", timeout=PATIENCE)
    words = page.locator("#fc-words")
    words.get_by_role("button", name="man", exact=True).click()
    expect(notice).to_contain_text("but 1 word is marked", timeout=PATIENCE)
    words.get_by_role("button", name="woman", exact=True).press("Enter")  # by keyboard, too
    expect(page.locator("#fc-prompt textarea")).to_have_value(PROMPT, timeout=PATIENCE)
    expect(words.get_by_role("button", name="woman, person 2")).to_be_focused(timeout=PATIENCE)
    expect(notice).not_to_be_visible(timeout=PATIENCE)

    page.get_by_role("button", name="Generate", exact=True).click()
    expect(generated(page)).to_have_count(2, timeout=PATIENCE)
    expect(page.locator("#fc-looks img")).to_have_count(2, timeout=PATIENCE)
    with page.expect_download() as download:
        page.locator("#fc-save").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    metadata: Any = read_metadata(file)
    assert file.name == "a_man_and_a_woman_on_the_beach_42.png"
    assert (metadata["prompt"], metadata["seed"], metadata["alpha"]) == (PROMPT, 42, 0.8)
    with Image.open(file) as image:
        assert image.size == (64, 64)

    page.get_by_role("button", name="Compare α").click()
    expect(page.locator("#fc-strip img")).to_have_count(5, timeout=PATIENCE)
    page.locator("#fc-strip button").nth(1).click()
    expect(page.get_by_label("number input for α")).to_have_value("0.4", timeout=PATIENCE)
    expect(generated(page)).to_have_count(1, timeout=PATIENCE)


def test_people_are_moved_and_removed(open_page: Any, examples: list[Example]) -> None:
    page = open_page()
    page.get_by_role("button", name=examples[0].name).click()
    names = [file.name for file in examples[0].references]
    expect(people(page)).to_have_count(2, timeout=PATIENCE)
    page.get_by_role("button", name="Move person 1 to the right").click()
    expect(people(page).first).to_have_attribute("alt", f"Person 1: {names[1]}", timeout=PATIENCE)
    page.get_by_role("button", name="Remove person 1").click()
    expect(people(page)).to_have_count(1, timeout=PATIENCE)
    expect(people(page)).to_have_attribute("alt", f"Person 1: {names[0]}")
    expect(page.locator("#fc-notice")).to_contain_text(
        "2 words are marked, but there are images of one person"
    )
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("2 words are marked", timeout=PATIENCE)


def test_several_images_of_a_person_on_a_phone(
    open_page: Any, examples: list[Example], tmp_path: Path
) -> None:
    page = open_page(width=390)
    upload(page, *examples[2].references, examples[1].references[0])
    page.locator("#fc-prompt textarea").fill("a man <|image|> and a woman <|image|> on the beach")
    expect(page.locator("#fc-notice")).to_contain_text("click “Same as” below them", timeout=PATIENCE)
    page.get_by_role("button", name="Merge person 2 with person 1").click()
    expect(page.locator("#fc-people li")).to_have_count(2, timeout=PATIENCE)
    expect(people(page)).to_have_count(3)
    expect(page.get_by_alt_text("Person 1: ")).to_have_count(2)
    expect(page.locator("#fc-notice")).not_to_be_visible(timeout=PATIENCE)
    assert not scrolls_sideways(page)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(generated(page)).to_have_count(2, timeout=PATIENCE)
    page.get_by_role("button", name="Compare α").click()
    expect(page.locator("#fc-strip img")).to_have_count(5, timeout=PATIENCE)
    assert not scrolls_sideways(page)
    with page.expect_download() as download:
        page.locator("#fc-save").click()
    download.value.save_as(tmp_path / "two.png")
    metadata: Any = read_metadata(tmp_path / "two.png")
    assert [len(digests) for digests in metadata["reference_digests"]] == [2, 1]
    page.get_by_role("button", name="Separate the images of person 1").click()
    expect(page.locator("#fc-people li")).to_have_count(3, timeout=PATIENCE)


def test_other_and_large_files_are_refused(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    Image.effect_noise((700, 700), 90).save(tmp_path / "large.png")
    assert 300_000 < (tmp_path / "large.png").stat().st_size < 1_200_000
    (tmp_path / "huge.png").write_bytes(b"x" * 1_500_000)
    (tmp_path / "letter.png").write_bytes(b"Dear Ann")
    (tmp_path / "letter.txt").write_text("Dear Bob")
    for name, problem in (("large.png", "is too large"), ("letter.png", "cannot be read as an image")):
        upload(page, tmp_path / name)
        expect(page.locator("#fc-refused")).to_contain_text(f"{name} {problem}", timeout=PATIENCE)
    toast = page.get_by_test_id("toast-body")  # what is not even sent
    upload(page, tmp_path / "huge.png")
    expect(toast.filter(has_text="exceed the maximum allowed size")).to_be_visible(timeout=PATIENCE)
    upload(page, tmp_path / "letter.txt")
    expect(toast.filter(has_text="Invalid file type")).to_be_visible(timeout=PATIENCE)
    expect(people(page)).to_have_count(0)


def test_a_request_is_stopped(open_page: Any, examples: list[Example]) -> None:
    page = open_page()
    page.get_by_role("button", name=examples[1].name).click()
    expect(people(page)).to_have_count(1, timeout=PATIENCE)
    page.get_by_role("button", name="More").click()
    set_steps(page, 100)
    other = open_page(width=390)  # all is ready before, because generating takes little time
    other.get_by_role("button", name=examples[1].name).click()
    expect(people(other)).to_have_count(1, timeout=PATIENCE)
    page.get_by_role("button", name="Compare α").click()
    stop = page.get_by_role("button", name="Stop")
    expect(page.locator("#fc-progress")).to_contain_text("of 380 steps", timeout=PATIENCE)
    other.get_by_role("button", name="Generate", exact=True).click()  # another user has to wait
    expect(other.locator("#fc-progress")).to_contain_text("Waiting in the queue", timeout=PATIENCE)
    stop.click()
    expect(generated(other)).to_have_count(2, timeout=PATIENCE)
    expect(stop).not_to_be_visible(timeout=PATIENCE)
    expect(page.locator("#fc-progress progress")).not_to_be_visible()
    set_steps(page, 1)
    page.get_by_role("button", name="Generate", exact=True).click()  # the next one has its turn
    expect(generated(page)).to_have_count(2, timeout=PATIENCE)
    expect(page.locator("#fc-strip")).not_to_be_visible()


def test_a_photo_is_taken(open_page: Any) -> None:
    page = open_page()
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('video')?.videoWidth > 0")  # before, there is no image
    page.get_by_label("capture photo").click()
    expect(people(page)).to_have_count(1, timeout=PATIENCE)


def test_nothing_is_left_behind(served: Served) -> None:  # the last: it ends the page
    assert len(list((served.folder / "outputs" / "demo").glob("page-*/files/uploads"))) == 1
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=60) == 128 + signal.SIGTERM
    assert [str(file.relative_to(served.folder)) for file in served.folder.rglob("*") if file.is_file()] == []
    assert [file.name for file in served.temporary.rglob("*") if file.is_file()] == []
