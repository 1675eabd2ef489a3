"""Whatever is not a readable allow, in time, is an exception, and the tool is never called."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from fake import ALLOW, FakeRemit, drip, environment, reply, reset, silent

from remit import RemitClient, RemitDenied, RemitError, RemitUnavailable, guard

REDIRECT = "Location: http://127.0.0.1:1/access/v1/evaluation\r\n"
NOT_ALLOWED: dict[str, tuple[Any, type[RemitError]]] = {
    "deny": (reply({"decision": False, "context": {"code": "no_permit", "reason": "No."}}), RemitDenied),
    "deny without context": (reply({"decision": False}), RemitDenied),
    "decision is text": (reply({"decision": "true"}), RemitUnavailable),
    "decision is a number": (reply({"decision": 1}), RemitUnavailable),
    "decision is null": (reply({"decision": None}), RemitUnavailable),
    "no decision": (reply({"context": {}}), RemitUnavailable),
    "an array": (reply([True]), RemitUnavailable),
    "context is no object": (reply({"decision": True, "context": "ok"}), RemitUnavailable),
    "empty": (reply(b""), RemitUnavailable),
    "garbage": (reply(b"<html>true</html>"), RemitUnavailable),
    "broken off": (reply(b'{"decision": tr'), RemitUnavailable),
    "not UTF-8": (reply(b'{"decision": "\xff"}'), RemitUnavailable),
    "deeply nested": (reply(b"[" * 200_000), RemitUnavailable),
    "too long": (reply(b'{"decision": true}' + b" " * (1 << 20)), RemitUnavailable),
    "500": (reply(ALLOW, "500 Internal Server Error"), RemitUnavailable),
    "503": (reply({"code": "not_synced", "message": "wait"}, "503 Service Unavailable"), RemitUnavailable),
    "401": (reply(ALLOW, "401 Unauthorized"), RemitUnavailable),
    "201": (reply(ALLOW, "201 Created"), RemitUnavailable),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", RemitUnavailable),
    "redirect": (reply(ALLOW, "307 Temporary Redirect", REDIRECT), RemitUnavailable),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", RemitUnavailable),
    "reset": (reset, RemitUnavailable),
    "closed": (lambda connection: connection.close(), RemitUnavailable),
    "silent": (silent, RemitUnavailable),
    "drips": (drip, RemitUnavailable),
}


def client(url: str, **more: Any) -> RemitClient:
    return RemitClient(url, **{"agent": "coder", "tenant": "acme", "token": "secret-token", "timeout": 5.0, **more})


def eventually(done: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("case", NOT_ALLOWED)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_not_an_allow_never_calls_the_tool(case: str, asynchronous: bool) -> None:
    answer, error = NOT_ALLOWED[case]
    called: list[Any] = []
    with FakeRemit(answer) as fake:
        remit = client(fake.url, timeout=1.0 if answer in (silent, drip) else 30.0)

        @guard("git/push", client=remit)
        def push(branch: str) -> None:
            called.append(branch)

        @guard("git/push", client=remit)
        async def apush(branch: str) -> None:
            called.append(branch)

        with pytest.raises(error) as caught:
            asyncio.run(apush("main")) if asynchronous else push("main")
        assert type(caught.value) is error and "secret-token" not in str(caught.value)
        assert fake.asked and not called and not fake.outcomes


def test_an_allow_that_comes_at_once_is_one() -> None:
    """The other half of the test above: with the same client and the same guard."""
    with FakeRemit() as fake:
        assert guard("git/push", client=client(fake.url))(lambda branch: branch)("main") == "main"


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RemitUnavailable, match="can't be reached"):
            client(url).check("git/push", {})
    with pytest.raises(RemitUnavailable):
        client("unix:///nowhere/remit.sock").check("git/push", {})
    with pytest.raises(RemitUnavailable):
        asyncio.run(client("unix:///nowhere/remit.sock").acheck("git/push", {}))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_clock_runs_from_the_first_step(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name can't be interrupted: who asked does not wait for it."""
    looked_up = threading.Event()

    def hang(*_: Any) -> None:
        looked_up.wait(600)
        raise OSError("no such name")

    monkeypatch.setattr("socket.create_connection", hang)
    remit = client("https://remit.example", timeout=0.3)
    try:
        with pytest.raises(RemitUnavailable, match="no answer within 300 ms"):
            asyncio.run(remit.acheck("git/push", {})) if asynchronous else remit.check("git/push", {})
    finally:
        looked_up.set()


def test_question_and_answer() -> None:
    answer = {"decision": False, "context": {"code": "denied_by_policy", "reason": "Open a pull request.", "rule": "no-force"}}
    with FakeRemit(reply(answer)) as fake:
        remit = client(fake.url, session="s-1", on_behalf_of={"type": "user", "id": "alice"})
        with pytest.raises(RemitDenied) as denied:
            remit.check("git/push", {"force": True}, schema_digest="sha256:00")
        assert str(denied.value) == "denied (no-force): Open a pull request."
        assert fake.asked == [
            {
                "subject": {"type": "agent", "id": "coder"},
                "action": {"name": "call_tool"},
                "resource": {"type": "tool", "id": "git/push"},
                "context": {
                    "session": "s-1",
                    "on_behalf_of": {"type": "user", "id": "alice"},
                    "arguments": {"force": True},
                    "schema_digest": "sha256:00",
                },
            }
        ]
        assert fake.heads[0].startswith("POST /tenants/acme/access/v1/evaluation HTTP/1.1")
        assert "Authorization: Bearer secret-token" in fake.heads[0]


def test_observe_is_an_allow_that_says_so() -> None:
    context = {"code": "observed", "decision_id": "d-2", "would_be": {"decision": False, "code": "no_permit"}}
    with FakeRemit(reply({"decision": True, "context": context})) as fake:
        decision = client(fake.url).check("git/push", {})
        assert decision.would_be == {"decision": False, "code": "no_permit"}


@pytest.mark.parametrize("status, said", [("401 Unauthorized", "401 token_rejected"), ("200 OK", "can't be reached")])
def test_an_answer_that_comes_before_the_question_was_read(status: str, said: str) -> None:
    def hasty(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(reply({**ALLOW, "code": "token_rejected"}, status))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory() as folder:
        listener.bind(f"{folder}/s")
        listener.listen()
        threading.Thread(target=hasty, args=(listener,), daemon=True).start()
        # Larger than what a socket buffers, so that the question can't have been sent.
        with pytest.raises(RemitUnavailable, match=said):
            client(f"unix://{folder}/s", timeout=60).check("git/push", {"text": "x" * (1 << 22)})


def test_environment_and_a_token_that_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRemit() as fake:
        for name, value in environment(fake, str(tmp_path)).items():
            monkeypatch.setenv(name, value)
        remit = RemitClient.from_env()
        remit.check("git/log", {})
        (tmp_path / "token").write_text("second-token\n")
        remit.check("git/log", {})
        assert "Bearer secret-token" in fake.heads[0] and "Bearer second-token" in fake.heads[1]
        (tmp_path / "token").write_text("two\nlines\r\nX-Smuggled: yes")
        with pytest.raises(RemitUnavailable, match="characters that no token has") as error:
            remit.check("git/log", {})
        assert "Smuggled" not in str(error.value)
        (tmp_path / "token").unlink()
        with pytest.raises(RemitUnavailable):
            remit.check("git/log", {})
        assert len(fake.asked) == 2
    monkeypatch.delenv("REMIT_AGENT")
    with pytest.raises(ValueError, match="REMIT_AGENT"):
        RemitClient.from_env()


def test_unix_socket_finds_the_token_beside_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("local-token")
    with FakeRemit(unix=str(tmp_path / "remit.sock")) as fake:
        RemitClient(fake.url, agent="coder").check("git/log", {})
        assert "Bearer local-token" in fake.heads[0] and fake.heads[0].startswith("POST /access/v1/evaluation ")


@pytest.mark.parametrize(
    "url",
    ["http://remit.example:8080", "http://10.0.0.1", "ftp://127.0.0.1", "remit.example", "unix://host/path", "https://", ""]
    + ["https://user:secret@remit.example", "https://remit.example/?tenant=x", "http://127.0.0.1.example"],
)
def test_a_token_goes_nowhere_in_clear(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        client(url)


def test_what_json_cannot_say_is_not_asked() -> None:
    with FakeRemit() as fake:
        remit = client(fake.url)
        loop: list[Any] = []
        loop.append(loop)
        for value in (Path("/"), (1, 2), {1: 2}, {"a": {3}}, float("nan"), float("inf"), b"x", loop, object()):
            with pytest.raises(RemitUnavailable, match="`arguments.value"):
                remit.check("git/push", {"value": value})
        with pytest.raises(RemitUnavailable, match="must be an object"):
            remit.check("git/push", ["main"])  # type: ignore[arg-type]
        assert not fake.asked


def test_outcomes_are_reported_once_and_never_harm() -> None:
    with FakeRemit() as fake:
        remit = client(fake.url)

        @guard("git/push", client=remit)
        def push(branch: str) -> str:
            if branch == "broken":
                raise OSError("remote hung up")
            return branch

        @guard("git/push", client=remit)
        async def apush(branch: str) -> str:
            if branch == "forever":
                await asyncio.sleep(3600)
            return push.__wrapped__(branch)  # type: ignore[attr-defined,no-any-return]

        assert push("main") == "main" and asyncio.run(apush("main")) == "main"
        with pytest.raises(OSError, match="remote hung up"):
            push("broken")

        async def taken_back() -> None:
            task = asyncio.create_task(apush("forever"))
            while len(fake.asked) < 4:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(taken_back())
        eventually(lambda: len(fake.outcomes) == 4)
        assert [body["outcome"] for _, body in fake.outcomes] == ["success", "success", "tool_error", "cancelled"]
        assert {path for path, _ in fake.outcomes} == {"/tenants/acme/decisions/d-1/outcome"}
        assert all(type(body["duration_ms"]) is int for _, body in fake.outcomes)

    def once(connection: socket.socket) -> None:
        connection.sendall(reply(ALLOW))
        connection.close()
        fake._server.socket.close()

    with FakeRemit(once) as fake:
        assert guard("git/push", client=client(fake.url))(lambda: json.dumps("done"))() == '"done"'
