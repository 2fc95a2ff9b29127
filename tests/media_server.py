"""A hostile media server on 127.0.0.1, and a trap that counts who connects to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Listener:
    """Answers each connection on a thread of its own. `seen`: the request lines."""

    def __init__(self, answer: Callable[[str, socket.socket], None], host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family)
        self.port: int = self._socket.getsockname()[1]
        self.seen: list[str] = []
        self.closing = threading.Event()
        self._answer = answer
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
                head += part
            line = head.partition(b"\r\n")[0].decode("latin-1")
            self.seen.append(line)
            self._answer(line.split(" ")[1] if " " in line else "", connection)

    def close(self) -> None:
        self.closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


def response(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


@contextmanager
def media_server(image: bytes, trap: int) -> Iterator[Listener]:
    """Serves `image` at /image, and misbehaves at other paths. `trap`: the port of another server."""
    moved = {
        "/to-trap": f"http://127.0.0.1:{trap}/", "/to-name": f"http://localhost:{trap}/",
        "/to-v6": f"http://[::1]:{trap}/", "/to-mapped": f"http://[::ffff:127.0.0.1]:{trap}/",
        "/to-number": f"http://2130706433:{trap}/", "/to-any": f"http://0.0.0.0:{trap}/",
        "/to-scheme-relative": f"//127.0.0.1:{trap}/", "/to-user": f"http://127.0.0.1@localhost:{trap}/",
        "/to-file": "file:///etc/passwd", "/to-gopher": f"gopher://127.0.0.1:{trap}/_x", "/loop": "/loop",
        "/nowhere": "", "/to-nonsense": "http://[x", "/to-label": f"http://{'a' * 64}.example/",
        "/to-image": "/image", "/to-metadata": "http://169.254.169.254/latest/meta-data/",
    }

    def answer(path: str, connection: socket.socket) -> None:
        if path == "/image":
            connection.sendall(response("200 OK", image, "Content-Type: image/png"))
        elif path in moved:
            connection.sendall(response("302 Found", b"", f"Location: {moved[path]}"))
        elif path == "/500":
            connection.sendall(response("500 Internal Server Error", b"no"))
        elif path == "/html":
            connection.sendall(response("200 OK", b"<html>an image</html>"))
        elif path == "/empty":
            connection.sendall(response("200 OK"))
        elif path == "/garbage":
            connection.sendall(b"\x00\x01 this is no HTTP\r\n\r\n")
        elif path == "/reset":
            connection.close()
        elif path == "/short":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxx")
        elif path == "/headers":
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 65536 + b"\r\n" * 2)
            for _ in range(1000):
                connection.sendall(b"X-More: " + b"y" * 1000 + b"\r\n")
        elif path == "/endless":
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not listener.closing.is_set():
                connection.sendall(b"10000\r\n" + b"z" * 65536 + b"\r\n")
        elif path == "/slow":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not listener.closing.wait(0.2):
                connection.sendall(b"s")
        elif path == "/silent":
            listener.closing.wait()
        else:
            connection.sendall(response("404 Not Found"))

    listener = Listener(answer)
    try:
        yield listener
    finally:
        listener.close()
