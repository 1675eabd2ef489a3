/** LangChain's agent and LangGraph's ToolNode, as they are on npm, with a model that says what the test tells it to. */
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { AIMessage, type BaseMessage } from "@langchain/core/messages";
import { MessagesAnnotation, StateGraph } from "@langchain/langgraph";
import { ToolNode } from "@langchain/langgraph/prebuilt";
import { createAgent, createMiddleware, fakeModel, tool, ToolMessage } from "langchain";
import { remitMiddleware, remitTool } from "remit-sdk/langchain";
import { z } from "zod";

import { ALLOW, DENY, client, reply, withFake, type Fake } from "./fake.js";

let called: unknown[] = [];
beforeEach(() => void (called = []));

const push = tool(
  (args) => {
    called.push(args);
    if (args.branch === "broken") throw new Error("remote hung up");
    return `pushed ${args.branch}`;
  },
  { name: "push", description: "Pushes.", schema: z.object({ branch: z.string(), force: z.boolean().default(true) }) },
);

type Surface = (fake: Fake, args: Record<string, unknown>) => Promise<ToolMessage>;

function answer(messages: BaseMessage[]): ToolMessage {
  return messages.find((message) => ToolMessage.isInstance(message)) as ToolMessage;
}

const SURFACES: Record<string, Surface> = {
  agent: async (fake, args) => {
    const model = fakeModel().respondWithTools([{ name: "push", args, id: "call-1" }]).respond(new AIMessage("done"));
    const agent = createAgent({ model, tools: [push], middleware: [remitMiddleware({ server: "app", client: client(fake) })] });
    return answer((await agent.invoke({ messages: [{ role: "user", content: "go" }] })).messages);
  },
  graph: async (fake, args) => {
    const call = new AIMessage({ content: "", tool_calls: [{ name: "push", args, id: "call-1", type: "tool_call" }] });
    const graph = new StateGraph(MessagesAnnotation)
      .addNode("model", () => ({ messages: [call] }))
      .addNode("tools", new ToolNode([remitTool(push, { server: "app", client: client(fake) })]))
      .addEdge("__start__", "model")
      .addEdge("model", "tools")
      .compile();
    return answer((await graph.invoke({ messages: [{ role: "user", content: "go" }] })).messages);
  },
};

for (const [name, run] of Object.entries(SURFACES)) {
  test(`${name}: an allowed call is made as it was checked`, async () => {
    await withFake(reply(ALLOW), async (fake) => {
      const message = await run(fake, { branch: "main" });
      assert.equal(message.content, "pushed main");
      assert.deepEqual(fake.asked[0].context.arguments, { branch: "main", force: true });
      assert.equal(fake.asked[0].resource.id, "app/push");
      assert.deepEqual(called, [{ branch: "main", force: true }]);
      assert.deepEqual(fake.outcomes.map((o) => o.outcome), ["success"]);
    });
  });

  test(`${name}: a denied call is a message with the author's reason`, async () => {
    await withFake(reply(DENY), async (fake) => {
      const message = await run(fake, { branch: "main" });
      assert.equal(message.content, "denied (no-force): Open a pull request instead.");
      assert.deepEqual([message.status, message.name, message.tool_call_id], ["error", "push", "call-1"]);
      assert.deepEqual([called, fake.asked.length, fake.outcomes], [[], 1, []]);
    });
  });

  test(`${name}: without an answer nothing is called`, async () => {
    for (const nothing of [reply({ decision: "true" }), reply(ALLOW, "500 Oops"), "\r\n"])
      await withFake(nothing, async (fake) => {
        const message = await run(fake, { branch: "main" });
        assert.match(String(message.content), /Remit/);
        assert.deepEqual([message.status, called, fake.asked.length], ["error", [], 1]);
      });
  });
}

test("last in the list checks what the others made of the call", async () => {
  await withFake(reply(ALLOW), async (fake) => {
    const rewrites = createMiddleware({
      name: "Rewrites",
      wrapToolCall: (request, handler) => handler({ ...request, toolCall: { ...request.toolCall, args: { branch: "rewritten" } } }),
    });
    const model = fakeModel().respondWithTools([{ name: "push", args: { branch: "main" }, id: "call-1" }]).respond(new AIMessage("done"));
    const remit = remitMiddleware({ server: "app", names: { push: "git/push" }, client: client(fake) });
    const state = await createAgent({ model, tools: [push], middleware: [rewrites, remit] }).invoke({ messages: [{ role: "user", content: "go" }] });
    assert.equal(answer(state.messages).content, "pushed rewritten");
    assert.equal(fake.asked[0].context.arguments.branch, "rewritten");
    assert.equal(fake.asked[0].resource.id, "git/push");
  });
});

test("a failing tool is reported as one", async () => {
  await withFake(reply(ALLOW), async (fake) => {
    await SURFACES["agent"]!(fake, { branch: "broken" }).catch(() => undefined);
    assert.deepEqual(fake.outcomes.map((o) => o.outcome), ["tool_error"]);
  });
});

test("no other method of a guarded tool passes by the check", async () => {
  await withFake(reply(DENY), async (fake) => {
    const guarded = remitTool(push, { server: "app", client: client(fake) });
    const call = { name: "push", args: { branch: "main" }, id: "call-1", type: "tool_call" as const };
    for (const result of [await guarded.invoke(call), await guarded.call(call), (await guarded.batch([call]))[0]])
      assert.equal((result as ToolMessage).status, "error");
    for await (const chunk of await guarded.stream(call)) assert.equal((chunk as ToolMessage).status, "error");
    assert.equal(((await guarded.pipe((x: unknown) => x).invoke(call)) as ToolMessage).status, "error");
    assert.deepEqual([guarded.func, called], [undefined, []]);
    assert.equal(guarded.name, "push");
  });
});
