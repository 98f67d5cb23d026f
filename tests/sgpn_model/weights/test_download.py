"""Downloads from a server on this machine that misbehaves: whole and verified, or not there at all; no test leaves it."""

import contextlib
import errno
import hashlib
import importlib
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

import numpy as np
import pytest
import requests

from oracles.web_server import Answer, WebServer
from sgpn_model.weights import catalogue
from sgpn_model.weights.catalogue import DownloadError, Entry, fetch

BLOCK = 1 << 19  # what gdown reads at a time, and keeps when a connection is lost
CONTENT = np.random.default_rng(0).bytes(3 * BLOCK + 1000)
NEW = np.random.default_rng(1).bytes(len(CONTENT))
CUT = 2 * BLOCK + 5000
HTML = Answer(content=b"<!DOCTYPE html><html><title>Sign in</title></html>", kind="text/html; charset=utf-8")
# For servers that fall silent; the others may take their time on a busy machine.
IMPATIENT = dict(retries=0, timeout=(5, 0.5))


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """A proxy that this machine may have is not for a server on it, and gdown waits for no second try."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("random.uniform", lambda *_: 0.0)


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
    told = {"url": url, "sha256": digest, "size": size, "hash_from": "here"}
    return Entry("thing", "a test", "CC0", "the-source", "none", "thing.bin", **(told | more))


def ranges(server):
    return [request.range for request in server.requests]


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_whole(folder, content=CONTENT):
    assert names(folder) == ["thing.bin"] and (folder / "thing.bin").read_bytes() == content


def assert_kept(folder, size):
    """A part for the next call, and nothing else."""
    (part,) = folder.iterdir()
    assert re.fullmatch(r"\.thing\.bin.{8}\.part", part.name) and part.stat().st_size == size


# ---------------------------------------------------------------------------------------------------------------------
# It works


@pytest.mark.parametrize("digits", [64, 8])
def test_a_file_arrives_whole_and_under_its_name_only(server, folder, digits):
    path, is_new = fetch(entry(server.url, digits=digits, size=len(CONTENT)), folder)
    assert path == folder / "thing.bin" and is_new
    assert_whole(folder)


def test_what_is_there_and_right_is_not_fetched_again(server, folder):
    fetch(entry(server.url), folder)
    assert fetch(entry(server.url), folder) == (folder / "thing.bin", False)
    assert len(server.requests) == 1


def test_what_is_there_and_wrong_is_not_overwritten(server, folder):
    folder.mkdir()
    (folder / "thing.bin").write_bytes(b"my own file")
    with pytest.raises(DownloadError, match="is there already, but has SHA-256 .* move it away"):
        fetch(entry(server.url), folder)
    assert_whole(folder, b"my own file")
    assert not server.requests


def test_downloads_go_to_the_cache_folder_by_default(server, folder, monkeypatch):
    monkeypatch.setenv("SGPN_HOME", str(folder))
    fetch(entry(server.url))
    assert_whole(folder)


def test_a_length_that_is_not_told_is_no_obstacle(server, folder):
    server.plan = [Answer(length=False)]
    fetch(entry(server.url), folder)
    assert_whole(folder)


def archive_of(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights.pth", content)
    return file.getvalue()


def test_without_a_hash_the_format_is_checked(server, folder):
    """An archive knows its end, and a checksum of what is in it."""
    whole = archive_of(CONTENT[:1000])
    for content, message in ((whole[:-30], "cut off"), (whole.replace(CONTENT[500:600], bytes(100)), "checksum")):
        server.content = content
        with pytest.raises(DownloadError, match=message):
            fetch(entry(server.url, digits=0), folder)
        assert not names(folder)
    server.content = whole
    fetch(entry(server.url, digits=0), folder)
    assert_whole(folder, whole)


# ---------------------------------------------------------------------------------------------------------------------
# The connection is lost, and comes back


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_lost_connection_is_taken_up_where_it_broke(server, folder, end):
    server.plan = [Answer(cut=CUT, end=end)]
    fetch(entry(server.url), folder)
    assert_whole(folder)
    first, second = server.requests
    assert second.range == f"bytes={2 * BLOCK}-" and second.sent == len(CONTENT) - 2 * BLOCK
    assert second.if_range == f'"{hashlib.md5(CONTENT).hexdigest()}"'


def test_silence_is_a_lost_connection(server, folder):
    server.plan = [Answer(cut=CUT, stall=8.0)]
    start = time.monotonic()
    fetch(entry(server.url), folder, retries=1, timeout=(5, 0.5))
    assert_whole(folder)
    assert time.monotonic() - start < 6.0, "waited for the server"
    assert server.requests[1].range


@pytest.mark.parametrize(("etag", "digits"), [("", 64), ("", 0), (None, 64), ('W/"weak"', 64)])
def test_a_file_that_changes_on_the_way_is_never_glued(server, folder, etag, digits):
    """A strong ETag or the hash shows it: the new file, or an error, but no mixture; and the next call sets it right."""
    old, new = (b"\x80\x02" + content for content in (CONTENT, NEW))  # pickles have no end to be recognised by
    server.content = new
    server.plan = [Answer(content=old, cut=CUT, etag=etag), *(Answer(etag=etag) for _ in range(9))]
    wanted = entry(server.url, new, digits)
    with contextlib.suppress(DownloadError):
        fetch(wanted, folder)
    assert names(folder) != ["thing.bin"] or (folder / "thing.bin").read_bytes() == new
    fetch(wanted, folder)
    assert_whole(folder, new)


# ---------------------------------------------------------------------------------------------------------------------
# It is lost for good


def interrupted(server, folder):
    """A first call that loses its connection after two blocks."""
    server.plan = [Answer(cut=CUT, stall=2.0)]
    with pytest.raises(DownloadError, match=r"failed .*The 1.0 MB that arrived are kept: fetch again to go on"):
        fetch(entry(server.url), folder, **IMPATIENT)
    assert_kept(folder, 2 * BLOCK)
    server.plan.clear()


def test_an_outage_in_the_middle_keeps_the_part_for_the_next_call(server, folder):
    interrupted(server, folder)
    fetch(entry(server.url), folder)
    assert_whole(folder)
    assert server.requests[-1].range == f"bytes={2 * BLOCK}-"
    assert server.requests[-1].sent == len(CONTENT) - 2 * BLOCK


def test_being_offline_or_refused_for_a_while_later_keeps_the_part(server, folder):
    interrupted(server, folder)
    server.plan = [Answer(status=503)]
    with pytest.raises(DownloadError, match="answers 503 .*Try again later"):
        fetch(entry(server.url), folder)
    server.close()
    with pytest.raises(DownloadError, match="are kept"):
        fetch(entry(server.url), folder, **IMPATIENT)
    assert_kept(folder, 2 * BLOCK)


def test_a_part_is_dropped_when_the_file_has_changed_meanwhile(server, folder):
    """The hash shows that old and new bytes do not go together."""
    interrupted(server, folder)
    server.content = NEW
    fetch(entry(server.url, NEW), folder)
    assert_whole(folder, NEW)
    assert ranges(server)[-2:] == [f"bytes={2 * BLOCK}-", None]


@pytest.mark.parametrize("answer", [Answer(takes_range=False), Answer(first_byte=BLOCK)], ids=["all", "elsewhere"])
def test_a_rest_that_the_server_does_not_give_is_fetched_from_the_start(server, folder, answer):
    interrupted(server, folder)
    server.plan = [Answer(), answer]
    fetch(entry(server.url), folder)
    assert_whole(folder)
    assert ranges(server)[-1] is None


def test_a_part_without_a_hash_is_not_trusted(server, folder):
    folder.mkdir()
    for name in (".thing.bin", ".thing.bin12345678.part"):
        (folder / name).write_bytes(b"\x80\x02 old")
    server.content = b"\x80\x02 new"
    fetch(entry(server.url, digits=0), folder)
    assert_whole(folder, server.content)
    assert ranges(server) == [None]


def test_parts_of_a_longer_name_are_left_alone(server, folder):
    folder.mkdir()
    other = folder / ".thing.bin.gz12345678.part"
    other.write_bytes(b"of another download")
    server.content = b"\x80\x02 a pickle"
    fetch(entry(server.url, digits=0), folder)
    assert other.read_bytes() == b"of another download"


def test_offline_from_the_start_leaves_nothing(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/thing.bin"
    with pytest.raises(
        DownloadError, match=r"failed \(Connection refused\). Check the connection. Fetch again"
    ) as caught:
        fetch(entry(url), folder)
    assert f"open {url} in a browser and put the file to {folder / 'thing.bin'}" in str(caught.value)
    assert not names(folder)


def test_an_unknown_host_leaves_nothing(folder, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DownloadError, match="failed .Name or service not known"):
        fetch(entry("http://weights.invalid/thing.bin"), folder)
    assert not names(folder)


@pytest.mark.parametrize("digits", [64, 0])
def test_a_server_that_never_gives_all_gives_nothing(server, folder, digits):
    server.plan = [Answer(cut=BLOCK + 1) for _ in range(9)]
    with pytest.raises(DownloadError, match="failed .*Check the connection"):
        fetch(entry(server.url, digits=digits), folder, retries=1)
    assert "thing.bin" not in names(folder)
    assert bool(names(folder)) == (digits == 64)


def test_another_size_than_the_catalogue_says_leaves_nothing(server, folder):
    for size in (len(CONTENT) + 1, 1000):
        with pytest.raises(DownloadError, match=f"sends {len(CONTENT):,} bytes, but the catalogue says {size:,}"):
            fetch(entry(server.url, size=size), folder)
    server.plan = [Answer(length=False), Answer(length=False)]
    with pytest.raises(DownloadError, match=f"sends {BLOCK:,} bytes, but the catalogue says 1,000"):
        fetch(entry(server.url, size=1000), folder)  # however long it may go on
    with pytest.raises(DownloadError, match=f"has {len(CONTENT):,} bytes, but should have {len(CONTENT) + 1:,}"):
        fetch(entry(server.url, size=len(CONTENT) + 1), folder)
    assert not names(folder)


@pytest.mark.parametrize("digits", [64, 8])
def test_wrong_content_leaves_nothing(server, folder, digits):
    server.content = NEW
    found, wanted = (hashlib.sha256(content).hexdigest() for content in (NEW, CONTENT))
    shown = wanted if digits == 64 else rf"{wanted[:8]}\.\.\."
    with pytest.raises(DownloadError, match=f"SHA-256 {found}, but should have {shown}.*see the-source"):
        fetch(entry(server.url, digits=digits), folder)
    assert not names(folder)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("digits", [64, 0])
def test_a_web_page_leaves_nothing(server, folder, kind, digits):
    server.plan = [Answer(content=HTML.content, kind=kind)]
    with pytest.raises(DownloadError, match="is a web page, not weights. Is there a login page"):
        fetch(entry(server.url, digits=digits), folder)
    assert not names(folder)


def test_a_login_page_in_place_of_the_rest_is_no_part_of_the_file(server, folder):
    interrupted(server, folder)
    page = Answer(content=HTML.content, kind=HTML.kind, takes_range=False)
    server.plan = [page, page, page]
    with pytest.raises(DownloadError, match="is a web page"):
        fetch(entry(server.url), folder)
    assert not names(folder)
    fetch(entry(server.url), folder)
    assert_whole(folder)


@pytest.mark.parametrize("status", [404, 403, 410, 401, 500, 503])
def test_a_refusal_leaves_nothing(server, folder, status):
    server.plan = [Answer(status=status)]
    with pytest.raises(DownloadError, match=f"answers {status} .*has the file moved. See the-source"):
        fetch(entry(server.url), folder)
    assert len(server.requests) == 1 and not names(folder)


def test_an_empty_answer_leaves_nothing(server, folder):
    server.content = b""
    with pytest.raises(DownloadError, match="empty"):
        fetch(entry(server.url, digits=0), folder)
    assert not names(folder)


# ---------------------------------------------------------------------------------------------------------------------
# The disk


def test_too_little_space_is_seen_beforehand(server, folder, monkeypatch):
    monkeypatch.setattr(catalogue.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=500_000))
    with pytest.raises(DownloadError, match=r"disk is full: make room \(500 KB free, 1.0 MB needed\).* -o"):
        fetch(entry(server.url), folder)
    assert not names(folder)


@pytest.mark.parametrize("moment", ["making the part", "writing", "syncing"])
def test_a_disk_that_fills_up_leaves_nothing(server, folder, monkeypatch, moment):
    full = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > BLOCK:
                raise full
            return super().write(data)

    def fail(*_, **__):
        raise full

    if moment == "making the part":
        monkeypatch.setattr("tempfile.NamedTemporaryFile", fail)
    elif moment == "writing":
        monkeypatch.setattr(importlib.import_module("gdown.download"), "open", Full, raising=False)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DownloadError, match="the disk is full: make room .No space left on device"):
        fetch(entry(server.url), folder)
    monkeypatch.undo()
    assert not names(folder)


def test_a_target_that_is_a_folder(server, folder):
    (folder / "thing.bin").mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a folder"):
        fetch(entry(server.url), folder)
    assert not server.requests


@pytest.mark.parametrize("error", [None, PermissionError(errno.EACCES, "Permission denied")])
def test_a_folder_that_cannot_be_written(server, tmp_path, monkeypatch, error):
    def fail(*_, **__):  # root may write everywhere
        raise error

    if error:
        monkeypatch.setattr("filelock.FileLock.acquire", fail)
    else:
        (tmp_path / "weights").write_text("a file")
    with pytest.raises(DownloadError, match="thing.bin: cannot be written .*-o"):
        fetch(entry(server.url), tmp_path / "weights")
    assert not server.requests


# ---------------------------------------------------------------------------------------------------------------------
# Interrupted by the user, and two at once

SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background has it ignored
from sgpn_model.weights.catalogue import Entry, fetch
words = "thing", "a test", "CC0", "the-source", "none", "thing.bin"
print(fetch(Entry(*words, url=sys.argv[1], sha256=sys.argv[3], hash_from="here"), sys.argv[2], timeout=(5, 20))[1])
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


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_killed_download_is_resumed_by_the_next(server, folder, start, name):
    server.plan = [Answer(cut=CUT, stall=15)]
    process = start()
    end = time.monotonic() + 15
    while sum(path.stat().st_size for path in folder.glob(".thing.bin*.part")) < 2 * BLOCK:
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    assert process.wait(10) != 0
    assert not (folder / "thing.bin").exists()
    if name == "SIGINT":
        assert b"The 1.0 MB that arrived are kept: fetch again to go on" in process.stderr.read()
        assert_kept(folder, 2 * BLOCK)
    fetch(entry(server.url), folder)
    assert_whole(folder)
    assert ranges(server)[-1] == f"bytes={2 * BLOCK}-"
    assert server.requests[-1].sent == len(CONTENT) - 2 * BLOCK


def test_two_at_once_download_once(server, folder, start):
    server.plan = [Answer(cut=CUT, stall=1.5)]
    one, two = start(), start()
    said = sorted(process.communicate(timeout=20)[0].strip() for process in (one, two))
    assert said == [b"False", b"True"] and one.returncode == two.returncode == 0
    assert_whole(folder)
    assert sum(request.sent for request in server.requests) < 1.2 * len(CONTENT)


# ---------------------------------------------------------------------------------------------------------------------
# Google Drive: gdown's own code, with a server on this machine in Google's place


FILE = "https://drive.google.com/file/d/14GsUEJHJxDpJSiZRFB0Eo9oGcshcI6a3/view"
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


def test_drive_gives_the_file(drive, folder):
    drive.plan = [drive_answer()]
    assert fetch(entry(FILE), folder) == (folder / "thing.bin", True)
    assert_whole(folder)
    assert "id=14GsUEJHJxDpJSiZRFB0Eo9oGcshcI6a3" in drive.requests[0].path


def test_drive_gives_a_page_about_its_quota(drive, folder):
    drive.plan = [Answer(content=QUOTA, kind="text/html; charset=utf-8")]
    told = "asked for too often lately.*Try again tomorrow, or open https://drive"
    with pytest.raises(DownloadError, match=told) as caught:
        fetch(entry(FILE), folder)
    assert FILE in str(caught.value) and str(folder / "thing.bin") in str(caught.value)
    assert not names(folder)


def test_drive_gives_something_else(drive, folder):
    drive.plan = [drive_answer(content=QUOTA)]
    with pytest.raises(DownloadError, match="is a web page"):
        fetch(entry(FILE), folder)
    assert not names(folder)


def test_drive_lost_in_the_middle_is_resumed_by_the_next_call(drive, folder):
    drive.plan = [drive_answer(cut=CUT, stall=2.0)]
    with pytest.raises(DownloadError, match="The 1.0 MB that arrived are kept"):
        fetch(entry(FILE), folder, **IMPATIENT)
    assert_kept(folder, 2 * BLOCK)
    drive.plan = [drive_answer() for _ in range(3)]
    fetch(entry(FILE), folder)
    assert_whole(folder)
    assert f"bytes={2 * BLOCK}-" in ranges(drive)


def test_drive_out_of_reach_leaves_nothing(folder, monkeypatch):
    def refuse(*_, **__):
        raise requests.exceptions.ConnectionError("[Errno 101] Network is unreachable")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", refuse)
    for url in (FILE, "https://drive.google.com/drive/folders/1" + "f" * 32):
        with pytest.raises(DownloadError, match="failed .*unreachable"):
            fetch(entry(url), folder, retries=0)
        assert not names(folder)


def test_a_file_in_a_folder_on_drive_is_found_by_its_name(drive, folder):
    number, asked = "1" + "a" * 32, "1" + "f" * 32
    page = (
        f'<html><title>checkpoints</title><a href="https://drive.google.com/file/d/{number}/view">thing.bin</a></html>'
    )
    drive.plan = [Answer(content=page.encode(), kind="text/html"), drive_answer(), drive_answer()]
    wanted = entry(f"https://drive.google.com/drive/folders/{asked}")
    fetch(wanted, folder)
    assert_whole(folder)
    assert asked in drive.requests[0].path and number in drive.requests[-1].path
    drive.plan = [Answer(content=page.replace("thing", "other").encode(), kind="text/html"), drive_answer()]
    with pytest.raises(DownloadError, match="holds no thing.bin"):
        fetch(wanted, folder / "again")


# ---------------------------------------------------------------------------------------------------------------------
# Not to be fetched


def test_what_is_given_by_hand_or_ships_is_not_fetched(folder):
    with pytest.raises(DownloadError, match="Apply at the university"):
        fetch(entry(by_hand="Apply at the university."), folder)
    assert not folder.exists()
