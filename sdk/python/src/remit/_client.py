"""The question on the wire: AuthZEN Authorization API 1.0 over https, loopback http or a Unix socket.

`check` returns only for an allow; everything else is an exception. Must never follow a redirect, never send a token in clear to
another machine, and never put a token or an argument into a message.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import ipaddress
import json
import os
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Mapping, TypeVar
from urllib.parse import quote, unquote, urlsplit

from ._json import snapshot

T = TypeVar("T")
_MAX_ANSWER = 1 << 20
_REPORT_SECONDS = 1.0


class RemitError(Exception):
    """The call must not be made. Its text may be shown to the model."""


class RemitUnavailable(RemitError):
    """There is no answer: Remit can't be reached, is late, or refused the question."""


class RemitDenied(RemitError):
    """Remit's answer is not an allow. `code` is stable, `rule` is the author's word, `reason` is for people and models."""

    def __init__(self, code: str, reason: str, rule: str | None = None, decision_id: str | None = None):
        super().__init__(f"denied ({rule or code}): {reason}")
        self.code, self.reason, self.rule, self.decision_id = code, reason, rule, decision_id


@dataclass(frozen=True)
class Decision:
    """An allow. `arguments` are the ones that were checked, in a copy that nobody else holds: call the tool with these."""

    id: str | None
    code: str | None
    reason: str | None
    arguments: dict[str, Any]
    would_be: Mapping[str, Any] | None = None


class RemitClient:
    """One agent's way to Remit. Safe to share between threads and tasks; tokens and CA are read again for each question."""

    def __init__(
        self,
        url: str,
        *,
        agent: str,
        tenant: str | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
        session: str | None = None,
        on_behalf_of: str | Mapping[str, str] | None = None,
    ):
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.query or parts.fragment or "@" in parts.netloc or (parts.scheme == "unix") != (not host):
            raise ValueError("url: must be https://HOST[:PORT], http:// to a loopback address, or unix:///PATH")
        if parts.scheme not in ("https", "http", "unix") or (parts.scheme == "http" and not _loopback(host)):
            raise ValueError("url: must be https, or http to a loopback address: a token is no secret on an open wire")
        if not agent or not timeout > 0:
            raise ValueError("agent: must be named" if timeout > 0 else "timeout: must be above zero")
        if token is None and token_file is None and parts.scheme == "unix":
            token_file = os.path.join(os.path.dirname(unquote(parts.path)), "token")
        if (token is None) == (token_file is None):
            raise ValueError("token, token_file: exactly one is needed")
        self._scheme, self._host, self._path = parts.scheme, host, unquote(parts.path)
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._token, self._token_file, self._ca_file, self._timeout = token, token_file, ca_file, timeout
        self._prefix = "" if parts.scheme == "unix" else parts.path.rstrip("/")
        self._prefix += f"/tenants/{quote(tenant, safe='')}" if tenant else ""
        self._subject = {"type": "agent", "id": agent}
        self._context = {k: v for k, v in (("session", session), ("on_behalf_of", on_behalf_of)) if v is not None}
        self._tls: tuple[Any, ssl.SSLContext] | None = None

    @classmethod
    def from_env(cls, **more: Any) -> RemitClient:
        """From REMIT_URL, REMIT_TENANT, REMIT_AGENT, REMIT_TOKEN_FILE and REMIT_CA_FILE. What is passed wins."""
        for name in ("url", "tenant", "agent", "token_file", "ca_file"):
            if name not in more and not (name == "token_file" and "token" in more):
                more[name] = os.environ.get(f"REMIT_{name.upper()}") or None
        for name in ("url", "agent"):
            if more[name] is None:
                raise ValueError(f"REMIT_{name.upper()}: must be set")
        return cls(more.pop("url"), **more)

    def check(self, tool: str, arguments: Mapping[str, Any], *, schema_digest: str | None = None) -> Decision:
        """Returns if the call may be made; RemitDenied or RemitUnavailable if not. Blocks for at most the timeout."""
        frozen, body = self._question(tool, arguments, schema_digest)
        waiting = self._send("/access/v1/evaluation", body, self._timeout)
        try:
            return _allow(*waiting.result(self._timeout), frozen)
        except (TimeoutError, concurrent.futures.TimeoutError):
            raise self._late() from None

    async def acheck(self, tool: str, arguments: Mapping[str, Any], *, schema_digest: str | None = None) -> Decision:
        """`check` for asyncio."""
        frozen, body = self._question(tool, arguments, schema_digest)
        waiting = asyncio.wrap_future(self._send("/access/v1/evaluation", body, self._timeout))
        try:
            return _allow(*await asyncio.wait_for(waiting, self._timeout), frozen)
        except (TimeoutError, asyncio.TimeoutError):
            raise self._late() from None

    def run(self, decision: Decision, call: Callable[[], T], judge: Callable[[T], str] = lambda _: "success") -> T:
        """Makes an allowed call and reports what became of it. A report that is lost changes nothing."""
        begun = time.monotonic()
        try:
            result = call()
        except BaseException as error:
            self._report(decision, _outcome(error), begun)
            raise
        concurrent.futures.wait(self._report(decision, judge(result), begun), _REPORT_SECONDS)
        return result

    async def arun(
        self, decision: Decision, call: Callable[[], Awaitable[T]], judge: Callable[[T], str] = lambda _: "success"
    ) -> T:
        """`run` for asyncio."""
        begun = time.monotonic()
        try:
            result = await call()
        except BaseException as error:
            self._report(decision, _outcome(error), begun)
            raise
        reports = [asyncio.wrap_future(report) for report in self._report(decision, judge(result), begun)]
        if reports:
            await asyncio.wait(reports, timeout=_REPORT_SECONDS)
            for report in reports:
                report.cancel() or report.exception()
        return result

    def _question(self, tool: str, arguments: Mapping[str, Any], digest: str | None) -> tuple[dict[str, Any], bytes]:
        try:
            frozen: dict[str, Any] = snapshot(arguments)
            if type(frozen) is not dict:
                raise ValueError("`arguments` must be an object")
            context = {**self._context, "arguments": frozen} | ({"schema_digest": digest} if digest else {})
            question = {
                "subject": self._subject,
                "action": {"name": "call_tool"},
                "resource": {"type": "tool", "id": tool},
                "context": context,
            }
            return frozen, json.dumps(question, allow_nan=False).encode()
        except ValueError as error:
            raise RemitUnavailable(f"Remit can't be asked: {error}") from None

    def _report(self, decision: Decision, outcome: str, begun: float) -> list[concurrent.futures.Future[Any]]:
        if decision.id is None:
            return []
        body = {"outcome": outcome, "duration_ms": int((time.monotonic() - begun) * 1000)}
        return [self._send(f"/decisions/{quote(decision.id, safe='')}/outcome", json.dumps(body).encode(), _REPORT_SECONDS)]

    def _send(self, path: str, body: bytes, timeout: float) -> concurrent.futures.Future[tuple[int, bytes]]:
        """One POST on a thread of its own: no step of it (names, TLS, a peer that drips) can outlast who waits for it."""
        answer: concurrent.futures.Future[tuple[int, bytes]] = concurrent.futures.Future()

        def exchange() -> None:
            link: list[socket.socket] = []
            # A peer that drips would hold this thread for ever.
            cut = threading.Timer(timeout, _cut, [link])
            cut.daemon = True
            try:
                cut.start()
                connection = http.client.HTTPConnection(self._host or "localhost", self._port)
                self._connect(link, timeout)
                connection.sock = link[-1]
                token = self._token if self._token is not None else _read(self._token_file)
                if not re.fullmatch(r"[!-~]+", token):
                    raise RemitUnavailable("Remit can't be asked: the token is empty or has characters that no token has")
                headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Connection": "close"}
                unsent: OSError | None = None
                try:
                    connection.request("POST", self._prefix + path, body, headers)
                except (BrokenPipeError, ConnectionResetError) as error:
                    unsent = error  # A refusal, such as 401, may come before the body is read. Nothing else may.
                response = connection.getresponse()
                result = response.status, response.read(_MAX_ANSWER + 1)
                if unsent and response.status < 400:
                    raise unsent
                if answer.set_running_or_notify_cancel():
                    answer.set_result(result)
            except BaseException as error:
                why = error if isinstance(error, RemitUnavailable) else RemitUnavailable(_unreachable(error))
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(why)
            finally:
                cut.cancel()
                for peer in link:
                    peer.close()

        try:
            threading.Thread(target=exchange, name="remit", daemon=True).start()
        except RuntimeError as error:
            answer.set_exception(RemitUnavailable(_unreachable(error)))
        return answer

    def _connect(self, link: list[socket.socket], timeout: float) -> None:
        """The last of `link` is the connection; what is in it can be cut at any moment."""
        if self._scheme == "unix":
            link.append(socket.socket(socket.AF_UNIX))
            link[0].settimeout(timeout)
            link[0].connect(self._path)
            return
        link.append(socket.create_connection((self._host, self._port), timeout))
        if self._scheme == "https":
            tls = self._trust()
            link.append(tls.wrap_socket(link[0], server_hostname=self._host, do_handshake_on_connect=False))
            link[1].do_handshake()  # type: ignore[attr-defined]

    def _trust(self) -> ssl.SSLContext:
        stat = os.stat(self._ca_file) if self._ca_file else None
        version = stat and (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if self._tls is None or self._tls[0] != version:
            self._tls = version, ssl.create_default_context(cafile=self._ca_file)
        return self._tls[1]

    def _late(self) -> RemitUnavailable:
        return RemitUnavailable(f"Remit gave no answer within {self._timeout * 1000:.0f} ms")


def _allow(status: int, raw: bytes, arguments: dict[str, Any]) -> Decision:
    """The decision, if and only if the answer is an allow."""
    try:
        answer = json.loads(raw) if len(raw) <= _MAX_ANSWER else None
    except (ValueError, RecursionError):
        answer = None
    answer = answer if type(answer) is dict else {}
    if status != 200:
        why = f"{_text(answer, 'code') or 'error'}: {_text(answer, 'message') or 'no reason given'}"
        raise RemitUnavailable(f"Remit refused the question: {status} {why}")
    ruling, context = answer.get("decision"), answer.get("context", {})
    if type(ruling) is not bool or type(context) is not dict:
        raise RemitUnavailable("Remit's answer can't be read")
    code, reason, decision_id = (_text(context, key) for key in ("code", "reason", "decision_id"))
    if ruling is not True:
        raise RemitDenied(code or "denied", reason or "Remit gave no reason.", _text(context, "rule"), decision_id)
    would_be = context.get("would_be")
    return Decision(decision_id, code, reason, arguments, would_be if type(would_be) is dict else None)


def _text(map: Mapping[str, Any], key: str) -> str | None:
    value = map.get(key)
    return value[:2000] if type(value) is str and value else None


def _outcome(error: BaseException) -> str:
    # LangGraph's interrupt takes the call back: it comes again, and is asked again, when the graph goes on.
    taken_back = not isinstance(error, Exception) or type(error).__name__ == "GraphInterrupt"
    return "cancelled" if taken_back else "tool_error"


def _unreachable(error: BaseException) -> str:
    # OSError and what is made of it speak of files, addresses and certificates; nothing else is repeated.
    return f"Remit can't be reached: {error if isinstance(error, OSError) else type(error).__name__}"


def _cut(link: list[socket.socket]) -> None:
    for peer in link:
        try:
            peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def _read(path: str | os.PathLike[str] | None) -> str:
    with open(path or "", encoding="ascii") as file:
        return file.read(65_536).strip()


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
