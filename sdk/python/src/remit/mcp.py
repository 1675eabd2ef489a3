"""A client of the Model Context Protocol's SDK whose calls are checked, with the digest of the definition that was listed.

`remit mcp-proxy` guards a whole process. This is for programs that hold the session themselves.
"""

from __future__ import annotations

from typing import Any

from mcp.types import CallToolResult, PaginatedRequestParams

from ._client import RemitClient, RemitDenied, RemitError, RemitUnavailable
from ._guard import default_client
from ._json import definition_digest

# What cannot call a tool. A way that is not here does not exist: the next version of the SDK may bring another.
_PASSES = frozenset(
    "initialize initialize_result server_info server_capabilities instructions protocol_version get_server_capabilities discover "
    "send_ping set_logging_level list_resources list_resource_templates read_resource subscribe_resource unsubscribe_resource "
    "list_prompts get_prompt complete send_progress_notification send_roots_list_changed".split()
)


class RemitSession:
    """Stands for a `ClientSession` or `Client`; a refused call is a result with `isError` and the author's reason.

    `server` is your name for it, never the server's. What must not be bypassed must not be handed out: keep the session to yourself.
    """

    def __init__(self, session: Any, *, server: str, client: RemitClient | None = None):
        self._session, self._server, self._client = session, server, client
        self._digests: dict[str, set[str]] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in _PASSES:
            raise AttributeError(f"{name}: is not passed through by RemitSession")
        return getattr(self._session, name)

    async def list_tools(self, *args: Any, **kwargs: Any) -> Any:
        """The session's own, remembered."""
        listed = await self._session.list_tools(*args, **kwargs)
        for tool in listed.tools:
            definition = tool.model_dump(mode="json", by_alias=True, exclude_unset=True)
            self._digests.setdefault(tool.name, set()).add(definition_digest(definition))
        return listed

    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """The session's own, after an allow."""
        try:
            client = self._client or default_client()
            digest = await self._digest(name)
            decision = await client.acheck(f"{self._server}/{name}", {} if arguments is None else arguments, schema_digest=digest)
        except RemitError as error:
            return CallToolResult.model_validate({"content": [{"type": "text", "text": str(error)}], "isError": True})
        call = self._session.call_tool
        return await client.arun(decision, lambda: call(name, decision.arguments, *args, **kwargs), _judge)

    async def _digest(self, name: str) -> str:
        if name not in self._digests:
            await self._list_all()
        seen = self._digests.get(name, set())
        if len(seen) != 1:
            why = "changed its definition during this session" if seen else "is not listed by its server"
            raise RemitDenied("tool_changed", f"{self._server}/{name} {why}, so that nobody has reviewed this call.")
        return next(iter(seen))

    async def _list_all(self) -> None:
        cursor: str | None = None
        for _ in range(100):
            page = {"cursor": cursor} if hasattr(self._session, "session") else {"params": PaginatedRequestParams(cursor=cursor)}
            listed = await (self.list_tools(**page) if cursor else self.list_tools())
            cursor = getattr(listed, "next_cursor", None) or getattr(listed, "nextCursor", None)
            if not cursor:
                return
        raise RemitUnavailable("Remit can't be asked: the server's list of tools does not end")


def _judge(result: Any) -> str:
    failed = getattr(result, "is_error", None) or getattr(result, "isError", None)
    return "tool_error" if failed else "success"
