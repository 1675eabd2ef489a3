"""A decision point that can misbehave, on a thread: what a client must survive without making a call."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
import time
from typing import Any

ALLOW = {"decision": True, "context": {"code": "allowed", "reason": "ok", "decision_id": "d-1"}}


def reply(body: Any, status: str = "200 OK", headers: str = "") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class FakeRemit:
    """Answers each evaluation with `answer`: bytes of a response, or a function of the connection. Remembers what was asked."""

    def __init__(self, answer: Any = None, unix: str | None = None):
        self.answer = reply(ALLOW) if answer is None else answer
        self.asked: list[dict[str, Any]] = []
        self.outcomes: list[tuple[str, dict[str, Any]]] = []
        self.heads: list[str] = []
        fake = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                head, _, body = b"", b"", b""
                while b"\r\n\r\n" not in head:
                    some = self.request.recv(65536)
                    if not some:
                        return
                    head += some
                head, _, body = head.partition(b"\r\n\r\n")
                length = next(int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length"))
                while len(body) < length:
                    body += self.request.recv(65536)
                path = head.split(b" ")[1].decode()
                fake.heads.append(head.decode())
                if path.endswith("/outcome"):
                    fake.outcomes.append((path, json.loads(body)))
                    self.request.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                    return
                fake.asked.append(json.loads(body))
                if callable(fake.answer):
                    fake.answer(self.request)
                else:
                    self.request.sendall(fake.answer)

        kind: Any = socketserver.ThreadingUnixStreamServer if unix else socketserver.ThreadingTCPServer
        kind.allow_reuse_address, kind.daemon_threads = True, True
        self._server = kind(unix or ("127.0.0.1", 0), Handler)
        self.url = f"unix://{unix}" if unix else f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> FakeRemit:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def arguments(self) -> Any:
        """Of the last question."""
        return self.asked[-1]["context"]["arguments"]


def reset(connection: socket.socket) -> None:
    """Ends the connection with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def silent(connection: socket.socket) -> None:
    """Says nothing, until the other side gives up."""
    connection.settimeout(60)
    try:
        connection.recv(1)
    except OSError:
        pass


def drip(connection: socket.socket) -> None:
    """An allow, one byte at a time: every read succeeds in time, the whole never does."""
    try:
        for byte in reply(ALLOW):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
    except OSError:
        pass


def environment(fake: FakeRemit, folder: str) -> dict[str, str]:
    token = os.path.join(folder, "token")
    with open(token, "w") as file:
        file.write("secret-token\n")
    return {"REMIT_URL": fake.url, "REMIT_TENANT": "acme", "REMIT_AGENT": "coder", "REMIT_TOKEN_FILE": token}
