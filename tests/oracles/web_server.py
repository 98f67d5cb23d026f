"""A web server on this machine that serves one file and misbehaves on demand, and remembers what it was asked."""

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """How one request is answered; the default is an honest answer.

    Attributes:
        status: of the answer; other than 200, a short text is the body. content, etag: in place of the file's.
        kind: content type. takes_range: whether Range is honoured. cut: the connection ends after so many bytes of the
            body, "close" in peace or by "reset". stall: seconds of silence after ``cut`` bytes. length: whether the
            answer says how long it is. headers: further ones. first_byte: where a partial answer begins, if not where it should.
    """

    status: int = 200
    content: bytes | None = None
    etag: str | None = ""
    kind: str = "application/octet-stream"
    takes_range: bool = True
    cut: int | None = None
    end: str = "close"
    stall: float = 0.0
    length: bool = True
    first_byte: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Request:
    """What was asked, and how many bytes of the body were sent in answer."""

    path: str
    range: str | None
    if_range: str | None
    sent: int = 0


class WebServer:
    """Serves ``content`` at every path; the answers in ``plan`` are used up one by one, then it is honest."""

    def __init__(self, content: bytes):
        self.content = content
        self.plan: list[Answer] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/thing.bin"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                asked = Request(self.path, self.headers["Range"], self.headers["If-Range"])
                with outer.lock:
                    outer.requests.append(asked)
                    answer = outer.plan.pop(0) if outer.plan else Answer()
                with contextlib.suppress(ConnectionError):
                    outer._answer(self, asked, answer)

            def log_message(self, *_):
                pass

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, asked: Request, answer: Answer) -> None:
        content = self.content if answer.content is None else answer.content
        etag = f'"{hashlib.md5(content).hexdigest()}"' if answer.etag == "" else answer.etag
        status, body, headers = answer.status, content, [("Content-Type", answer.kind), *answer.headers]
        if status != 200:
            body = b"no"
        elif asked.range and answer.takes_range and asked.if_range in (None, etag):
            status, first = 206, int(re.fullmatch(r"bytes=(\d+)-", asked.range)[1])
            first = first if answer.first_byte is None else answer.first_byte
            body = content[first:]
            headers.append(("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}"))
        if etag:
            headers.append(("ETag", etag))
        if answer.length:
            headers.append(("Content-Length", str(len(body))))
        self._send(handler, status, headers, body, asked, answer)

    def _send(self, handler, status: int, headers: list, body: bytes, asked: Request, answer: Answer) -> None:
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        body = body if answer.cut is None else body[: answer.cut]
        for start in range(0, len(body), 1 << 14):
            piece = body[start : start + (1 << 14)]
            handler.wfile.write(piece)
            asked.sent += len(piece)
        handler.wfile.flush()
        time.sleep(answer.stall)
        if answer.end == "reset":
            time.sleep(0.05)  # let the bytes arrive before
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
