"""LangChain agents and LangGraph's ToolNode: every tool call is checked before its handler runs.

A refusal becomes the tool's message, with status `error` and the author's reason, so that the model learns what to do instead.
"""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Mapping

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.types import Command
from pydantic import BaseModel

from ._client import Decision, RemitClient, RemitError
from ._guard import default_client
from ._json import snapshot

Result = ToolMessage | Command[Any]


class RemitMiddleware(AgentMiddleware[Any, Any]):
    """`create_agent(…, middleware=[…, RemitMiddleware(server="app")])`: last, because the first is outermost, and a middleware further
    in could change the call after it was checked.

    A tool is `server/name`, where `names` says nothing else. For a graph of your own:
    `ToolNode(tools, wrap_tool_call=remit.wrap_tool_call, awrap_tool_call=remit.awrap_tool_call)`.
    """

    def __init__(self, *, server: str, names: Mapping[str, str] | None = None, client: RemitClient | None = None):
        super().__init__()
        self._server, self._names, self._client = server, dict(names or {}), client

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]) -> Result:
        try:
            client = self._client or default_client()
            decision = client.check(self._tool(request), _arguments(request))
        except RemitError as error:
            return _refusal(request, error)
        return client.run(decision, lambda: handler(_checked(request, decision)), _judge)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        try:
            client = self._client or default_client()
            decision = await client.acheck(self._tool(request), _arguments(request))
        except RemitError as error:
            return _refusal(request, error)
        return await client.arun(decision, lambda: handler(_checked(request, decision)), _judge)

    def _tool(self, request: ToolCallRequest) -> str:
        name = request.tool_call["name"]
        return self._names.get(name) or f"{self._server}/{name}"


def _arguments(request: ToolCallRequest) -> dict[str, Any]:
    """What the model sent, and the defaults that the tool's schema would fill in."""
    arguments = dict(request.tool_call["args"])
    schema = getattr(request.tool, "tool_call_schema", None)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        for name, field in schema.model_fields.items():
            if field.is_required() or name in arguments or (field.alias or name) in arguments:
                continue
            try:
                arguments[field.alias or name] = snapshot(field.get_default(call_default_factory=True))
            except (ValueError, TypeError):
                pass  # A default that is no JSON is the tool author's constant: no policy can read it.
    return arguments


def _checked(request: ToolCallRequest, decision: Decision) -> ToolCallRequest:
    return request.override(tool_call={**request.tool_call, "args": decision.arguments})


def _refusal(request: ToolCallRequest, error: RemitError) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(str(error), name=call["name"], tool_call_id=call["id"], status="error")


def _judge(result: Result) -> str:
    return "tool_error" if getattr(result, "status", None) == "error" else "success"
