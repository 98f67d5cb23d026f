"""Downloads from a server on this machine that misbehaves in every way we could think of; no test leaves it."""

import contextlib
import errno
import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import requests

from oracles.web_server import Answer, WebServer
from sgpn_model.weights import download
from sgpn_model.weights.catalogue import Entry
from sgpn_model.weights.download import DownloadError, DownloadInterrupted, Settings, fetch

CONTENT = np.random.default_rng(0).bytes(600_000)
HALF = 300_000
FAST = Settings(retries=3, timeout=(5, 5), wait=0.01, progress=False)
# For servers that fall silent; the others may take their time on a busy machine.
IMPATIENT = Settings(retries=1, timeout=(5, 0.5), wait=0.01, progress=False)
SILENT = [Answer(cut=0, stall=3.0) for _ in range(3)]
HTML = Answer(content=b"<!DOCTYPE html><html><title>Sign in</title></html>", kind="text/html; charset=utf-8")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A proxy that this machine may have is not for a server on it."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    server = WebServer(CONTENT)
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def entry(url=None, content=CONTENT, digits=64, size=None, **more):
    digest = hashlib.sha256(content).hexdigest()[:digits] or None
    where = {} if url is None else {"urls": (url,)}
    told = {"sha256": digest, "size": size, "hash_from": "here"}
    return Entry("thing", "a test", "CC0", "the-source", "none", "thing.bin", **(where | told | more))


def ranges(server):
    return [request.range for request in server.requests]


def assert_nothing(folder):
    """Neither the file, nor a part, nor a lock, nor the folder that was made for it."""
    assert not folder.exists() or not list(folder.iterdir())


def assert_whole(folder, content=CONTENT):
    assert [path.name for path in folder.iterdir()] == ["thing.bin"]
    assert (folder / "thing.bin").read_bytes() == content


# ---------------------------------------------------------------------------------------------------------------------
# It works


@pytest.mark.parametrize("digits", [64, 8])
def test_a_file_arrives_whole_and_under_its_name_only(server, folder, digits):
    path, is_new = fetch(entry(server.url, digits=digits, size=len(CONTENT)), folder, FAST)
    assert path == folder / "thing.bin" and is_new
    assert_whole(folder)


def test_what_is_there_and_right_is_not_fetched_again(server, folder):
    fetch(entry(server.url), folder, FAST)
    assert fetch(entry(server.url), folder, FAST) == (folder / "thing.bin", False)
    assert len(server.requests) == 1


def test_what_is_there_and_wrong_is_not_overwritten(server, folder):
    folder.mkdir()
    (folder / "thing.bin").write_bytes(b"my own file")
    with pytest.raises(DownloadError, match="is there already, but has SHA-256 .* move it away"):
        fetch(entry(server.url), folder, FAST)
    assert_whole(folder, b"my own file")
    assert not server.requests


def test_downloads_go_to_the_cache_folder_by_default(server, folder, monkeypatch):
    monkeypatch.setenv("SGPN_HOME", str(folder))
    fetch(entry(server.url), settings=FAST)
    assert_whole(folder)


def test_a_length_that_is_not_told_is_no_obstacle(server, folder):
    server.plan = [Answer(length=False)]
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)


def test_a_second_address_helps_out(server, folder):
    server.plan = [Answer(status=404)]
    fetch(entry(urls=(server.url.replace("thing", "gone"), server.url)), folder, FAST)
    assert_whole(folder)
    assert [request.path for request in server.requests] == ["/gone.bin", "/thing.bin"]


def test_without_a_hash_the_format_is_checked(server, folder):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("weights.pth", CONTENT[:1000])
    server.content = archive.getvalue()
    fetch(entry(server.url, digits=0), folder, FAST)
    assert_whole(folder, server.content)
    (folder / "thing.bin").unlink()
    server.content = archive.getvalue()[:-30]
    with pytest.raises(DownloadError, match="cut off"):
        fetch(entry(server.url, digits=0), folder, FAST)
    assert_nothing(folder)


# ---------------------------------------------------------------------------------------------------------------------
# The connection is lost, and comes back


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_lost_connection_is_taken_up_where_it_broke(server, folder, end):
    server.plan = [Answer(cut=HALF, end=end)]
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    first, second = server.requests
    begin = int(re.fullmatch(r"bytes=(\d+)-", second.range)[1])
    assert 0 < begin <= HALF and second.sent == len(CONTENT) - begin
    assert second.if_range == f'"{hashlib.md5(CONTENT).hexdigest()}"'


def test_a_server_that_knows_no_ranges_is_asked_for_all(server, folder):
    server.plan = [Answer(cut=HALF), Answer(takes_range=False)]
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert server.requests[1].range and server.requests[1].sent == len(CONTENT)


def test_tries_count_anew_while_there_is_progress(server, folder):
    server.plan = [Answer(cut=50_000) for _ in range(11)]  # far more than FAST.retries
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert len(server.requests) >= 12


def test_silence_is_a_lost_connection(server, folder):
    server.plan = [Answer(cut=HALF, stall=8.0)]
    start = time.monotonic()
    fetch(entry(server.url), folder, IMPATIENT)
    assert_whole(folder)
    assert time.monotonic() - start < 6.0, "waited for the server"
    assert server.requests[1].range


def test_a_server_that_is_busy_for_a_moment(server, folder):
    server.plan = [Answer(status=500), Answer(status=503)]
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)


NEW = np.random.default_rng(1).bytes(len(CONTENT))


@pytest.mark.parametrize("etag", ["", None, 'W/"weak"'])
@pytest.mark.parametrize("digits", [64, 0])
def test_a_file_that_changes_on_the_way_is_never_glued(server, folder, etag, digits):
    """Strong, weak and no ETag; known and unknown hash: the new file, or an error, but no mixture."""
    old, new = (b"\x80\x02" + content for content in (CONTENT, NEW))  # pickles have no end to be recognised by
    server.plan = [Answer(content=old, cut=HALF, etag=etag), Answer(content=new, etag=etag)]
    with contextlib.suppress(DownloadError):
        fetch(entry(server.url, new, digits), folder, FAST)
    assert not (folder / "thing.bin").exists() or (folder / "thing.bin").read_bytes() == new
    if etag == "":
        assert len(server.requests) == 2 and server.requests[1].sent == len(new)
    if etag == "" or digits == 0:
        assert_whole(folder, new)


def test_a_rest_that_begins_elsewhere_is_not_glued(server, folder):
    server.plan = [Answer(cut=HALF), Answer(first_byte=HALF - 5)]
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert ranges(server)[2] is None


def test_a_changed_etag_in_a_partial_answer_is_not_glued(server, folder):
    """A server that ignores If-Range: only the ETag of its answer tells."""
    server.plan = [Answer(cut=HALF), Answer(content=NEW), Answer(content=NEW)]
    original = server._answer

    def without_if_range(handler, asked, answer):
        original(handler, types.SimpleNamespace(path=asked.path, range=asked.range, if_range=None, sent=0), answer)

    server._answer = without_if_range
    fetch(entry(server.url, NEW), folder, FAST)
    assert_whole(folder, NEW)
    assert ranges(server)[1] and ranges(server)[2] is None


# ---------------------------------------------------------------------------------------------------------------------
# It is lost for good


def test_an_outage_in_the_middle_keeps_the_part_for_the_next_call(server, folder):
    server.plan = [Answer(cut=HALF, stall=3.0), *SILENT]
    with pytest.raises(DownloadInterrupted, match="that arrived are kept: fetch again to go on"):
        fetch(entry(server.url), folder, IMPATIENT)
    assert sorted(path.name for path in folder.iterdir()) == [".thing.bin.part", ".thing.bin.part.json"]
    have = (folder / ".thing.bin.part").stat().st_size
    assert 0 < have <= HALF
    server.plan.clear()
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert server.requests[-1].range == f"bytes={have}-" and server.requests[-1].sent == len(CONTENT) - have


def test_being_offline_later_keeps_the_part(server, folder):
    server.plan = [Answer(cut=HALF, stall=3.0), *SILENT]
    with pytest.raises(DownloadInterrupted):
        fetch(entry(server.url), folder, IMPATIENT)
    server.close()
    have = (folder / ".thing.bin.part").stat().st_size
    with pytest.raises(DownloadInterrupted, match="are kept"):
        fetch(entry(server.url), folder, IMPATIENT)
    assert (folder / ".thing.bin.part").stat().st_size == have


def test_an_unfinished_part_is_dropped_when_the_file_has_changed_meanwhile(server, folder):
    server.plan = [Answer(cut=HALF, stall=3.0), *SILENT]
    with pytest.raises(DownloadInterrupted):
        fetch(entry(server.url), folder, IMPATIENT)
    server.plan.clear()
    server.content = NEW
    fetch(entry(server.url, NEW), folder, FAST)
    assert_whole(folder, NEW)


def test_a_server_that_breaks_down_in_the_middle_keeps_the_part(server, folder):
    server.plan = [Answer(cut=HALF), *(Answer(status=503) for _ in range(9))]
    with pytest.raises(DownloadInterrupted, match="answers 503 .* are kept"):
        fetch(entry(server.url), folder, FAST)
    server.plan.clear()
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert server.requests[-1].range


def test_a_part_that_is_whole_only_needs_its_name(server, folder, monkeypatch):
    """As after a kill between the last byte and the renaming."""

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_publish", die)
    with pytest.raises(KeyboardInterrupt):
        fetch(entry(server.url), folder, FAST)
    monkeypatch.undo()
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert len(server.requests) == 1


def test_a_part_without_a_note_is_not_trusted(server, folder):
    folder.mkdir()
    (folder / ".thing.bin.part").write_bytes(b"whatever")
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert ranges(server) == [None]


def test_offline_from_the_start_leaves_nothing(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/thing.bin"
    with pytest.raises(DownloadError, match=r"no connection \(Connection refused\). Check the connection") as caught:
        fetch(entry(url), folder, FAST)
    assert f"download {url} with a browser and put it to {folder / 'thing.bin'}" in str(caught.value)
    assert not folder.exists()


def test_an_unknown_host_leaves_nothing(folder, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DownloadError, match="no connection .*Name or service not known"):
        fetch(entry("http://weights.invalid/thing.bin"), folder, FAST)
    assert not folder.exists()


@pytest.mark.parametrize("takes_range", [True, False])
def test_a_truncated_file_leaves_nothing(server, folder, takes_range):
    """The server is there, but never gives more than half."""
    half = Answer(cut=HALF, takes_range=takes_range)
    rest = Answer(cut=0, takes_range=True) if takes_range else half
    server.plan = [half, *(rest for _ in range(30))]
    with pytest.raises(DownloadError, match="brought no more. Nothing was kept. Fetch again later") as caught:
        fetch(entry(server.url), folder, FAST)
    assert not isinstance(caught.value, DownloadInterrupted)
    assert_nothing(folder)
    assert len(server.requests) < 10


def test_a_file_that_is_smaller_than_the_catalogue_says_leaves_nothing(server, folder):
    with pytest.raises(DownloadError, match="has 600,000 bytes, but the catalogue says 700,000"):
        fetch(entry(server.url, size=700_000), folder, FAST)
    assert_nothing(folder)
    server.plan = [Answer(length=False) for _ in range(20)]
    with pytest.raises(DownloadError, match="600,000 of 700,000 bytes"):
        fetch(entry(server.url, size=700_000), folder, FAST)
    assert_nothing(folder)


def test_a_file_without_end_is_stopped(server, folder):
    server.plan = [Answer(length=False)]
    with pytest.raises(DownloadError, match="more than the 1,000 bytes"):
        fetch(entry(server.url, size=1000), folder, FAST)
    assert_nothing(folder)


def test_wrong_content_leaves_nothing(server, folder):
    server.content = NEW
    with pytest.raises(DownloadError, match=f"SHA-256 {hashlib.sha256(NEW).hexdigest()}, but should .*see the-source"):
        fetch(entry(server.url), folder, FAST)
    assert_nothing(folder)
    with pytest.raises(DownloadError, match=r"but should have [0-9a-f]{8}\.\.\."):
        fetch(entry(server.url, digits=8), folder, FAST)
    assert_nothing(folder)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("digits", [64, 0])
def test_a_web_page_leaves_nothing(server, folder, kind, digits):
    server.plan = [Answer(content=HTML.content, kind=kind)]
    with pytest.raises(DownloadError, match="a web page came instead of weights. Is there a login page"):
        fetch(entry(server.url, digits=digits), folder, FAST)
    assert_nothing(folder)


def test_a_web_page_is_known_by_its_declared_kind_too(server, folder):
    server.plan = [Answer(content=b"Please sign in", kind="text/html")]
    with pytest.raises(DownloadError, match="a web page came instead of weights"):
        fetch(entry(server.url), folder, FAST)
    assert_nothing(folder)


def test_a_login_page_does_not_spoil_what_had_arrived(server, folder):
    server.plan = [Answer(cut=HALF), Answer(content=HTML.content, kind=HTML.kind, takes_range=False)]
    with pytest.raises(DownloadInterrupted, match="web page .* What had arrived is kept"):
        fetch(entry(server.url), folder, FAST)
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert server.requests[-1].range


@pytest.mark.parametrize("status", [404, 403, 410, 401])
def test_a_refusal_is_not_tried_again_and_leaves_nothing(server, folder, status):
    server.plan = [Answer(status=status) for _ in range(9)]
    with pytest.raises(DownloadError, match=f"answers {status} .*Has the file moved. See the-source"):
        fetch(entry(server.url), folder, FAST)
    assert len(server.requests) == 1
    assert_nothing(folder)


def test_a_server_that_stays_busy_leaves_nothing(server, folder):
    server.plan = [Answer(status=503) for _ in range(20)]
    with pytest.raises(DownloadError, match="answers 503"):
        fetch(entry(server.url), folder, FAST)
    assert len(server.requests) == 1 + FAST.retries
    assert_nothing(folder)


def test_an_empty_answer_leaves_nothing(server, folder):
    server.content = b""
    with pytest.raises(DownloadError, match="empty"):
        fetch(entry(server.url, digits=0), folder, FAST)
    assert_nothing(folder)


# ---------------------------------------------------------------------------------------------------------------------
# The disk


def test_too_little_space_is_seen_beforehand(server, folder, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=500_000))
    with pytest.raises(DownloadError, match=r"500 KB free, but 600 KB are needed. Make room.* -o"):
        fetch(entry(server.url), folder, FAST)
    assert_nothing(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_leaves_nothing(server, folder, monkeypatch):
    def full(path, mode="r", **options):
        return open("/dev/full" if "b" in mode and "+" not in mode else path, mode, **options)

    monkeypatch.setattr(download, "open", full, raising=False)
    with pytest.raises(DownloadError, match="the disk is full .*Make room"):
        fetch(entry(server.url), folder, FAST)
    monkeypatch.undo()
    assert_nothing(folder)


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(server, folder, monkeypatch):
    write = download.Part.write

    def fail_late(part, data):
        if part.size > HALF:
            raise download._cannot_write(part.target, OSError(errno.ENOSPC, "No space left on device"))
        write(part, data)

    monkeypatch.setattr(download.Part, "write", fail_late)
    with pytest.raises(DownloadError, match="the disk is full .No space left on device"):
        fetch(entry(server.url), folder, FAST)
    assert_nothing(folder)


def test_a_target_that_is_a_folder(server, folder):
    (folder / "thing.bin").mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a folder"):
        fetch(entry(server.url), folder, FAST)
    assert not server.requests


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DownloadError, match="cannot be made .*-o"):
        fetch(entry(server.url), tmp_path / "file" / "weights", FAST)
    assert not server.requests


def test_a_folder_without_permission(server, folder, monkeypatch):
    monkeypatch.setattr(download.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(DownloadError, match="no permission to write"):
        fetch(entry(server.url), folder, FAST)
    assert not server.requests
    assert_nothing(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Interrupted by the user, and two at once

SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background has it ignored
from sgpn_model.weights.catalogue import Entry
from sgpn_model.weights.download import Settings, fetch
entry = Entry("thing", "a test", "CC0", "the-source", "none", "thing.bin", urls=(sys.argv[1],), sha256=sys.argv[3])
print(fetch(entry, sys.argv[2], Settings(timeout=(5, 20), progress=False))[1])
"""


@pytest.fixture
def start(server, folder):
    """Starts processes that fetch, and ends them when the test does."""
    running = []

    def start():
        digest = hashlib.sha256(CONTENT).hexdigest()
        command = [sys.executable, "-c", SCRIPT, server.url, str(folder), digest]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_for(condition):
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_killed_download_is_resumed_by_the_next(server, folder, start, name):
    server.plan = [Answer(cut=HALF, stall=15)]
    process = start()
    part = folder / ".thing.bin.part"
    wait_for(lambda: part.exists() and part.stat().st_size > HALF - 40_000)
    process.send_signal(getattr(signal, name))
    assert process.wait(10) != 0
    assert not (folder / "thing.bin").exists()
    have = part.stat().st_size
    if name == "SIGINT":
        assert b"are kept; fetch again to go on" in process.stderr.read()
        assert sorted(path.name for path in folder.iterdir()) == [".thing.bin.part", ".thing.bin.part.json"]
    fetch(entry(server.url), folder, FAST)
    assert_whole(folder)
    assert ranges(server) == [None, f"bytes={have}-"]
    assert server.requests[1].sent == len(CONTENT) - have


def test_two_at_once_download_once(server, folder, start):
    server.plan = [Answer(cut=HALF, stall=1.5)]
    one, two = start(), start()
    said = sorted(process.communicate(timeout=20)[0].strip() for process in (one, two))
    assert said == [b"False", b"True"] and one.returncode == two.returncode == 0
    assert_whole(folder)
    assert sum(request.sent for request in server.requests) < 1.2 * len(CONTENT)


# ---------------------------------------------------------------------------------------------------------------------
# Google Drive: gdown's own code, with a server on this machine in Google's place


QUOTA = b"""<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></html>"""


def drive_answer(**more):
    return Answer(headers=(("Content-Disposition", 'attachment; filename="SGPN.zip"'),), **more)


@pytest.fixture
def drive(server, monkeypatch):
    """Whatever is asked of a host of Google's is asked of the local server; other hosts are an error."""
    send = requests.adapters.HTTPAdapter.send

    def send_here(adapter, request, **options):
        assert re.match(r"https://(drive|docs)\.google\.com/", request.url), request.url
        request.url = re.sub(r"https://[^/]+", f"http://127.0.0.1:{server.port}", request.url)
        return send(adapter, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_here)
    return server


def drive_entry(content=CONTENT, **more):
    return entry(content=content, **({"drive": "14GsUEJHJxDpJSiZRFB0Eo9oGcshcI6a3"} | more))


def test_drive_gives_the_file(drive, folder):
    drive.plan = [drive_answer()]
    assert fetch(drive_entry(), folder, FAST) == (folder / "thing.bin", True)
    assert_whole(folder)
    assert "id=14GsUEJHJxDpJSiZRFB0Eo9oGcshcI6a3" in drive.requests[0].path


def test_drive_and_a_part_of_unknown_origin(drive, folder):
    """gdown would take a file that is there for the whole."""
    folder.mkdir()
    (folder / ".thing.bin.part").write_bytes(b"\x80\x02 old")
    drive.content = b"\x80\x02 new"
    drive.plan = [drive_answer()]
    fetch(drive_entry(digits=0), folder, FAST)
    assert_whole(folder, drive.content)


def test_drive_gives_a_page_about_its_quota(drive, folder):
    drive.plan = [Answer(content=QUOTA, kind="text/html; charset=utf-8")]
    with pytest.raises(
        DownloadError, match="asked for too often lately.*Try again tomorrow, or open https://drive"
    ) as e:
        fetch(drive_entry(), folder, FAST)
    assert "/file/d/14GsUEJHJxDpJSiZRFB0Eo9oGcshcI6a3/view" in str(e.value) and str(folder / "thing.bin") in str(
        e.value
    )
    assert_nothing(folder)


def test_drive_gives_something_else(drive, folder):
    drive.plan = [drive_answer(content=QUOTA)]
    with pytest.raises(DownloadError, match="is a web page"):
        fetch(drive_entry(), folder, FAST)
    assert_nothing(folder)


def test_drive_lost_in_the_middle_is_resumed_by_the_next_call(drive, folder):
    none = Settings(retries=0, timeout=(5, 0.5), progress=False)
    drive.content = CONTENT * 3  # gdown keeps whole blocks of 512 KB
    drive.plan = [drive_answer(cut=1_300_000, stall=3.0)]
    with pytest.raises(DownloadInterrupted, match="The 1.0 MB that arrived are kept"):
        fetch(drive_entry(drive.content), folder, none)
    assert not (folder / "thing.bin").exists()
    drive.plan = [drive_answer() for _ in range(3)]
    fetch(drive_entry(drive.content), folder, none)
    assert_whole(folder, drive.content)
    assert f"bytes={2 << 19}-" in ranges(drive)


def test_a_rest_that_drive_does_not_give_is_fetched_from_the_start(drive, folder):
    none = Settings(retries=0, timeout=(5, 0.5), progress=False)
    drive.content = CONTENT * 3
    drive.plan = [drive_answer(cut=1_300_000, stall=3.0)]
    with pytest.raises(DownloadInterrupted):
        fetch(drive_entry(drive.content), folder, none)
    drive.plan = [drive_answer(takes_range=False) for _ in range(4)]
    fetch(drive_entry(drive.content), folder, none)
    assert_whole(folder, drive.content)


def test_drive_out_of_reach_leaves_nothing(folder, monkeypatch):
    def refuse(*_, **__):
        raise requests.exceptions.ConnectionError("[Errno 101] Network is unreachable")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", refuse)
    with pytest.raises(DownloadError, match="no connection to Google Drive .*unreachable"):
        fetch(drive_entry(), folder, Settings(retries=0, progress=False))
    assert_nothing(folder)


def test_drive_and_too_little_space(drive, folder, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    drive.plan = [drive_answer()]
    with pytest.raises(DownloadError, match="1.0 KB free"):
        fetch(drive_entry(), folder, FAST)
    assert_nothing(folder)


def test_a_file_in_a_folder_on_drive_is_found_by_its_name(drive, folder, monkeypatch):
    number, asked = "1" + "a" * 32, "1" + "f" * 32
    page = (
        f'<html><title>checkpoints</title><a href="https://drive.google.com/file/d/{number}/view">thing.bin</a></html>'
    )
    drive.plan = [Answer(content=page.encode(), kind="text/html"), drive_answer(), drive_answer()]
    fetch(drive_entry(drive=None, drive_folder=asked), folder, FAST)
    assert_whole(folder)
    assert asked in drive.requests[0].path and number in drive.requests[-1].path
    drive.plan = [Answer(content=page.replace("thing", "other").encode(), kind="text/html"), drive_answer()]
    with pytest.raises(DownloadError, match="holds no thing.bin"):
        fetch(drive_entry(drive=None, drive_folder=asked), folder / "again", FAST)


# ---------------------------------------------------------------------------------------------------------------------
# Not to be fetched


def test_what_is_given_by_hand_or_ships_is_not_fetched(folder):
    by_hand = entry(by_hand="Apply at the university.")
    with pytest.raises(DownloadError, match="Apply at the university"):
        fetch(by_hand, folder, FAST)
    assert_nothing(folder)
