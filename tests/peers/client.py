"""One scenario through the official Python SDK, unmodified: mcp 1.x or 2.x, whichever this interpreter has.

The scenario and the outcome are those of client.mjs.
"""

import asyncio
import contextlib
import json
import os
import sys
from importlib.metadata import version

MAJOR = int(version("mcp").split(".")[0])

if MAJOR >= 2:
    import httpx2 as httpx
    import mcp_types as types
    from mcp import Client, StdioServerParameters
    from mcp.client.streamable_http import streamable_http_client
else:
    import httpx
    from datetime import timedelta

    from mcp import ClientSession, StdioServerParameters, types
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

scenario = json.load(sys.stdin)
asked, told = [], []


def plain(value):
    """A model of either SDK as it stood on the wire."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return value


async def sampling(_context, params):
    asked.append({"method": "sampling/createMessage", "params": plain(params)})
    content = types.TextContent(type="text", text=scenario["sampling"])
    return types.CreateMessageResult(role="assistant", content=content, model="test")


async def elicitation(_context, params):
    asked.append({"method": "elicitation/create", "params": plain(params)})
    return types.ElicitResult(**scenario["elicitation"])


async def roots(_context):
    asked.append({"method": "roots/list"})
    return types.ListRootsResult(roots=[types.Root(uri=uri) for uri in scenario["roots"]])


async def notified(message):
    message = getattr(message, "root", message)
    if hasattr(message, "method"):
        told.append(plain(message))


def callbacks():
    given = {"message_handler": notified}
    for name, key, answer in [
        ("sampling", "sampling_callback", sampling),
        ("elicitation", "elicitation_callback", elicitation),
        ("roots", "list_roots_callback", roots),
    ]:
        if name in scenario:
            given[key] = answer
    return given


@contextlib.asynccontextmanager
async def connected(out):
    """A client of either SDK, with its way to the server."""
    stdio = url = None
    if "url" in scenario:
        http = httpx.AsyncClient(headers=scenario.get("headers", {}), timeout=60)
        url = streamable_http_client(scenario["url"], http_client=http)
    else:
        command, *args = scenario["command"]
        stdio = StdioServerParameters(command=command, args=args, env={**os.environ, **scenario.get("env", {})})
    if MAJOR >= 2:
        mode = scenario.get("era", "auto")
        async with Client(url or stdio, mode=mode, cache=None, read_timeout_seconds=60, **callbacks()) as client:
            out["protocol_version"] = client.protocol_version
            out["server"] = plain(client.server_info)
            out["capabilities"] = plain(client.server_capabilities)
            yield client
        return
    async with (url or stdio_client(stdio)) as streams:
        timeout = timedelta(seconds=60)
        async with ClientSession(streams[0], streams[1], read_timeout_seconds=timeout, **callbacks()) as session:
            hello = await session.initialize()
            out["protocol_version"] = hello.protocolVersion
            out["server"] = plain(hello.serverInfo)
            out["capabilities"] = plain(hello.capabilities)
            yield session


async def every(listing, member):
    found, cursor = [], None
    while True:
        page = await (listing(cursor=cursor) if cursor else listing())
        found.extend(plain(item) for item in getattr(page, member))
        cursor = getattr(page, "next_cursor", None) or getattr(page, "nextCursor", None)
        if not cursor:
            return found


async def run(client, step):
    do = step["do"]
    progress = []

    async def progressed(done, total, message):
        progress.append({"progress": done, "total": total, "message": message})

    if do == "list_tools":
        return {"tools": await every(client.list_tools, "tools")}
    if do == "call_tool":
        given = {"progress_callback": progressed} if step.get("progress") else {}
        call = client.call_tool(step["name"], step.get("arguments", {}), **given)
        if "cancel_after_ms" in step:
            call = asyncio.wait_for(call, step["cancel_after_ms"] / 1000)
        result = plain(await call)
        return {**result, "progress": progress} if step.get("progress") else result
    if do == "list_resources":
        return {"resources": await every(client.list_resources, "resources")}
    if do == "list_resource_templates":
        member = "resource_templates" if MAJOR >= 2 else "resourceTemplates"
        return {"resourceTemplates": await every(client.list_resource_templates, member)}
    if do == "read_resource":
        uri = step["uri"] if MAJOR >= 2 else types.AnyUrl(step["uri"])
        return plain(await client.read_resource(uri))
    if do == "list_prompts":
        return {"prompts": await every(client.list_prompts, "prompts")}
    if do == "get_prompt":
        return plain(await client.get_prompt(step["name"], step.get("arguments")))
    if do == "complete":
        kinds = {"ref/prompt": types.PromptReference, "ref/resource": types.ResourceTemplateReference}
        return plain(await client.complete(kinds[step["ref"]["type"]](**step["ref"]), step["argument"]))
    if do == "ping":
        return plain(await client.send_ping())
    if do == "set_level":
        return plain(await client.set_logging_level(step["level"]))
    if do == "touch":
        return open(step["path"], "w").close()
    if do == "wait_for":
        while not os.path.exists(step["path"]):
            await asyncio.sleep(0.02)
        return None
    if do == "wait_notified":
        while not any(n.get("method") == step["method"] for n in told):
            await asyncio.sleep(0.02)
        return None
    raise ValueError(f"no such step: {do}")


def failure(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    inner = getattr(error, "error", error)
    return {
        "ok": False,
        "error": {
            "name": type(error).__name__,
            "code": getattr(inner, "code", None),
            "message": getattr(inner, "message", None) or str(error),
        },
    }


async def main():
    out = {"steps": []}
    try:
        async with connected(out) as client:
            for step in scenario.get("steps", []):
                try:
                    out["steps"].append({"ok": True, "result": await run(client, step)})
                except Exception as error:  # noqa: BLE001: the outcome is what the scenario asks for
                    out["steps"].append(failure(error))
    except BaseException as error:  # noqa: BLE001
        out["connect"] = failure(error)
    out["asked"], out["told"] = asked, told
    print(json.dumps(out))


asyncio.run(main())
