"""What was checked is what is called."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake import FakeRemit
from test_client import client

from remit import RemitUnavailable, guard


def test_defaults_and_names_are_checked() -> None:
    with FakeRemit() as fake:

        @guard("git/push", client=client(fake.url))
        def push(remote: str, /, branch: str = "main", *refs: str, force: bool = False, **more: Any) -> Any:
            return remote, branch, refs, force, more

        assert push("origin") == ("origin", "main", (), False, {})
        assert fake.arguments == {"remote": "origin", "branch": "main", "refs": [], "force": False}
        assert push("origin", "next", "a", "b", force=True, dry=1) == ("origin", "next", ("a", "b"), True, {"dry": 1})
        assert fake.arguments == {"remote": "origin", "branch": "next", "refs": ["a", "b"], "force": True, "dry": 1}
        asked = len(fake.asked)
        # Two values under one name: the check would see one, the function both.
        with pytest.raises(RemitUnavailable, match="`remote` is given twice"):
            push("origin", remote="evil")
        with pytest.raises(TypeError):
            push()
        assert len(fake.asked) == asked and push.__name__ == "push"


def test_nothing_that_changes_after_the_check_reaches_the_function() -> None:
    files = ["a.txt"]

    def swap(connection: Any) -> None:
        from fake import ALLOW, reply

        files.append("../../etc/passwd")
        connection.sendall(reply(ALLOW))

    with FakeRemit(swap) as fake:

        @guard("fs/delete", client=client(fake.url))
        def delete(paths: list[str]) -> list[str]:
            return paths

        @guard("fs/delete", client=client(fake.url))
        async def adelete(paths: list[str]) -> list[str]:
            return paths

        assert delete(files) == ["a.txt"] and len(files) == 2
        files[1:] = []
        assert asyncio.run(adelete(files)) == ["a.txt"] and len(files) == 2


def test_a_method_says_what_is_not_an_argument() -> None:
    with FakeRemit() as fake:

        class Repository:
            @guard("git/log", client=client(fake.url), ignore=("self",))
            def log(self, limit: int = 10) -> Any:
                return self, limit

            @guard("git/log", client=client(fake.url))
            def forgot(self) -> None: ...

        repository = Repository()
        assert repository.log(3) == (repository, 3) and fake.arguments == {"limit": 3}
        with pytest.raises(RemitUnavailable, match="`arguments.self` .Repository."):
            repository.forgot()


def test_what_cannot_be_guarded_is_refused_when_it_is_written() -> None:
    def rows() -> Any:
        yield 1

    async def arows() -> Any:
        yield 1

    for generator in (rows, arows):
        with pytest.raises(TypeError, match="generator"):
            guard("db/rows")(generator)
    with pytest.raises(TypeError, match="no parameter `selv`"):
        guard("db/rows", ignore=("selv",))(lambda self: None)


def test_without_an_environment_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REMIT_URL", "REMIT_AGENT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RemitUnavailable, match="REMIT_URL"):
        guard("git/log")(lambda: pytest.fail("called"))()
