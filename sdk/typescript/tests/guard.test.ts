/** What was checked is what is called. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { z } from "zod";

import { RemitUnavailable, guard } from "remit-sdk";

import { ALLOW, client, reply, withFake } from "./fake.js";

test("nothing that changes after the check reaches the function", async () => {
  const args = { paths: ["a.txt"] };
  const swap = (socket: import("node:net").Socket) => {
    args.paths.push("../../etc/passwd");
    socket.end(reply(ALLOW));
  };
  await withFake(swap, async (fake) => {
    const remove = guard("fs/delete", (checked: typeof args) => checked.paths, { client: client(fake) });
    assert.deepEqual(await remove(args), ["a.txt"]);
    assert.deepEqual(args.paths.length, 2);
    // Read once for the check, once for the call?
    let reads = 0;
    const shifty = { get paths() { return reads++ ? ["../../etc/passwd"] : ["a.txt"]; } };
    const called = await remove(shifty);
    assert.deepEqual(called, fake.asked[1].context.arguments.paths);
  });
});

test("defaults are checked, with parse; further parameters pass", async () => {
  await withFake(reply(ALLOW), async (fake) => {
    const schema = z.object({ branch: z.string(), force: z.boolean().default(false) });
    const push = guard("git/push", (args: z.input<typeof schema>, by: symbol) => [args, by], { client: client(fake), parse: (args) => schema.parse(args) });
    const me = Symbol("me");
    assert.deepEqual(await push({ branch: "main" }, me), [{ branch: "main", force: false }, me]);
    assert.deepEqual(fake.asked[0].context.arguments, { branch: "main", force: false });
  });
});

test("what JSON cannot say is not asked", async () => {
  await withFake(reply(ALLOW), async (fake) => {
    const loop: unknown[] = [];
    loop.push(loop);
    const proto: unknown = JSON.parse('{"__proto__": {"force": true}}');
    const bad = [new Date(), new Map(), NaN, Infinity, 1n, Symbol("x"), () => 1, [undefined], [, 1], loop, new Uint8Array(1), { toJSON: () => 1 }, proto];
    for (const value of bad)
      await assert.rejects(client(fake).check("git/push", { value }), (e: Error) => e instanceof RemitUnavailable && e.message.includes("`arguments.value"), String(typeof value));
    await assert.rejects(client(fake).check("git/push", JSON.parse('{"__proto__": {"force": true}}')), /__proto__/);
    await assert.rejects(client(fake).check("git/push", [] as never), /must be an object/);
    await assert.rejects(client(fake).check("git/push", null as never), /must be an object/);
    assert.equal(fake.asked.length, 0);
    // A property without a value is an absent one, for the check and for the call.
    const decision = await client(fake).check("git/push", { branch: "main", force: undefined });
    assert.deepEqual(Object.keys(decision.arguments), ["branch"]);
  });
});

test("without an environment nothing runs", async () => {
  assert.equal(process.env["REMIT_URL"], undefined);
  await assert.rejects(guard("git/log", () => assert.fail("called"))({}), /REMIT_URL/);
});
