"""LangChain's agent and LangGraph's ToolNode, as they are on PyPI, with a model that says what the test tells it to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import pytest
from fake import ALLOW, FakeRemit, reply
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.tools import ToolRuntime, tool
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolArg
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.prebuilt.tool_node import ToolCallRequest
from test_client import client, eventually

from remit.langchain import RemitMiddleware

DENY = {"decision": False, "context": {"code": "denied_by_policy", "rule": "no-force", "reason": "Open a pull request instead."}}
called: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    called.clear()


@tool
def push(branch: str, force: bool = True, where: Path = Path("/srv"), user: Annotated[str, InjectedToolArg] = "root") -> str:
    """Pushes."""
    called.append((branch, force, where, user))
    if branch == "broken":
        raise OSError("remote hung up")
    return f"pushed {branch}"


@tool
async def whoami(runtime: ToolRuntime) -> str:
    """Reads what LangGraph injects."""
    called.append(len(runtime.state["messages"]))
    return "you"


class Model(GenericFakeChatModel):
    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self


def says(name: str, args: dict[str, Any]) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": "call-1"}])


def run(fake: FakeRemit, call: AIMessage, surface: str, inner: list[AgentMiddleware[Any, Any]] | None = None) -> ToolMessage:
    """The message that the model gets for its call."""
    remit = RemitMiddleware(server="app", names={"whoami": "os/whoami"}, client=client(fake.url))
    if surface.startswith("agent"):
        agent = create_agent(
            Model(messages=iter([call, AIMessage("done")])), [push, whoami], middleware=[*(inner or []), remit]
        )
    else:
        node = ToolNode([push, whoami], wrap_tool_call=remit.wrap_tool_call, awrap_tool_call=remit.awrap_tool_call)
        graph = StateGraph(MessagesState)
        graph.add_node("model", lambda state: {"messages": [call]} if len(state["messages"]) == 1 else {"messages": []})
        graph.add_node("tools", node)
        graph.add_edge(START, "model")
        graph.add_edge("model", "tools")
        graph.add_edge("tools", END)
        agent = graph.compile()
    asked = {"messages": [{"role": "user", "content": "go"}]}
    state = asyncio.run(agent.ainvoke(asked)) if surface.endswith("async") else agent.invoke(asked)
    return next(message for message in state["messages"] if isinstance(message, ToolMessage))


SURFACES = pytest.mark.parametrize("surface", ["agent", "agent async", "graph", "graph async"])


@SURFACES
def test_an_allowed_call_is_made_as_it_was_checked(surface: str) -> None:
    with FakeRemit() as fake:
        message = run(fake, says("push", {"branch": "main"}), surface)
        assert (message.content, message.status) == ("pushed main", "success")
        # The schema's default is checked, and given; what the framework injects and what is no JSON is neither.
        assert fake.arguments == {"branch": "main", "force": True}
        assert called == [("main", True, Path("/srv"), "root")]
        assert fake.asked[-1]["resource"]["id"] == "app/push"
        eventually(lambda: [body["outcome"] for _, body in fake.outcomes] == ["success"])


@SURFACES
def test_a_denied_call_is_a_message_with_the_author_s_reason(surface: str) -> None:
    with FakeRemit(reply(DENY)) as fake:
        message = run(fake, says("push", {"branch": "main"}), surface)
        assert (message.content, message.status) == ("denied (no-force): Open a pull request instead.", "error")
        assert (message.name, message.tool_call_id) == ("push", "call-1")
        assert not called and len(fake.asked) == 1 and not fake.outcomes


@SURFACES
@pytest.mark.parametrize("answer", [reply({"decision": "true"}), reply(ALLOW, "500 Oops"), b"\r\n"])
def test_without_an_answer_nothing_is_called(surface: str, answer: bytes) -> None:
    with FakeRemit(answer) as fake:
        message = run(fake, says("push", {"branch": "main"}), surface)
        assert message.status == "error" and "Remit" in str(message.content)
        assert not called and fake.asked


@pytest.mark.parametrize("surface", ["agent async", "graph async"])
def test_names_and_injected_values(surface: str) -> None:
    with FakeRemit() as fake:
        assert run(fake, says("whoami", {}), surface).content == "you"
        assert fake.asked[-1]["resource"]["id"] == "os/whoami" and fake.arguments == {} and called == [2]


def test_a_failing_tool_is_reported_as_one() -> None:
    with FakeRemit() as fake:
        with pytest.raises(OSError):
            run(fake, says("push", {"branch": "broken"}), "agent")
        eventually(lambda: [body["outcome"] for _, body in fake.outcomes] == ["tool_error"])


def test_what_changes_during_the_check_does_not_reach_the_tool() -> None:
    paths = ["a.txt"]

    def swap(connection: Any) -> None:
        paths.append("../../etc/passwd")
        connection.sendall(reply(ALLOW))

    def handler(request: ToolCallRequest) -> ToolMessage:
        return ToolMessage(",".join(request.tool_call["args"]["paths"]), tool_call_id="call-1")

    async def ahandler(request: ToolCallRequest) -> ToolMessage:
        return handler(request)

    with FakeRemit(swap) as fake:
        remit = RemitMiddleware(server="fs", client=client(fake.url))
        call: Any = {"name": "delete", "args": {"paths": paths}, "id": "call-1", "type": "tool_call"}
        request = ToolCallRequest(tool_call=call, tool=None, state={}, runtime=None)  # type: ignore[arg-type]
        assert remit.wrap_tool_call(request, handler).content == "a.txt" and len(paths) == 2
        paths[1:] = []
        assert asyncio.run(remit.awrap_tool_call(request, ahandler)).content == "a.txt" and len(paths) == 2


def test_last_in_the_list_checks_what_the_others_made_of_the_call() -> None:
    class Rewrites(AgentMiddleware[Any, Any]):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool_call={**request.tool_call, "args": {"branch": "rewritten"}}))

    with FakeRemit() as fake:
        assert run(fake, says("push", {"branch": "main"}), "agent", [Rewrites()]).content == "pushed rewritten"
        assert fake.arguments["branch"] == "rewritten"
