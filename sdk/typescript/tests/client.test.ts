/** Whatever is not a readable allow, in time, is a rejection, and the tool is never called. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { RemitClient, RemitDenied, RemitError, RemitUnavailable, guard } from "remit-sdk";

import { ALLOW, DENY, client, reply, withFake, type Behaviour } from "./fake.js";

const NOT_ALLOWED: Record<string, [Behaviour, new (...args: any[]) => RemitError, number?]> = {
  "deny": [reply({ decision: false, context: { code: "no_permit", reason: "No." } }), RemitDenied],
  "deny without context": [reply({ decision: false }), RemitDenied],
  "decision is text": [reply({ decision: "true" }), RemitUnavailable],
  "decision is a number": [reply({ decision: 1 }), RemitUnavailable],
  "decision is null": [reply({ decision: null }), RemitUnavailable],
  "no decision": [reply({ context: {} }), RemitUnavailable],
  "an array": [reply([true]), RemitUnavailable],
  "context is no object": [reply({ decision: true, context: "ok" }), RemitUnavailable],
  "empty": [reply(""), RemitUnavailable],
  "garbage": [reply("<html>true</html>"), RemitUnavailable],
  "broken off": [reply('{"decision": tr'), RemitUnavailable],
  "ends before its length": ['HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"decision": true}', RemitUnavailable],
  "too long": [reply('{"decision": true}' + " ".repeat(1 << 20)), RemitUnavailable],
  "500": [reply(ALLOW, "500 Internal Server Error"), RemitUnavailable],
  "503": [reply({ code: "not_synced", message: "wait" }, "503 Service Unavailable"), RemitUnavailable],
  "401": [reply(ALLOW, "401 Unauthorized"), RemitUnavailable],
  "201": [reply(ALLOW, "201 Created"), RemitUnavailable],
  "204": ["HTTP/1.1 204 No Content\r\n\r\n", RemitUnavailable],
  "redirect": [reply(ALLOW, "307 Temporary Redirect", "Location: http://127.0.0.1:1/\r\n"), RemitUnavailable],
  "no HTTP": ["SSH-2.0-OpenSSH\r\n\r\n", RemitUnavailable],
  "reset": [(socket) => socket.resetAndDestroy(), RemitUnavailable],
  "closed": [(socket) => socket.destroy(), RemitUnavailable],
  "silent": [() => undefined, RemitUnavailable, 1_000],
  "drips": [
    (socket) => {
      const bytes = reply(ALLOW);
      let sent = 0;
      const timer = setInterval(() => (socket.destroyed || sent === bytes.length ? clearInterval(timer) : socket.write(bytes.subarray(sent, ++sent))), 50);
    },
    RemitUnavailable,
    1_000,
  ],
};

for (const [name, [answer, kind, timeoutMs]] of Object.entries(NOT_ALLOWED)) {
  test(`not an allow, so the tool is not called: ${name}`, async () => {
    await withFake(answer, async (fake) => {
      let called = 0;
      const push = guard("git/push", async (_: { branch: string }) => void called++, { client: client(fake, timeoutMs ? { timeoutMs } : {}) });
      await assert.rejects(push({ branch: "main" }), (error: Error) => error.constructor === kind && !error.message.includes("secret-token"));
      assert.deepEqual([called, fake.outcomes.length, fake.asked.length], [0, 0, 1]);
    });
  });
}

test("an allow that comes at once is one", async () => {
  await withFake(reply(ALLOW), async (fake) => {
    assert.equal(await guard("git/push", (args: { branch: string }) => args.branch, { client: client(fake) })({ branch: "main" }), "main");
    assert.equal(fake.outcomes[0]?.outcome, "success");
    assert.equal(fake.outcomes[0]?.path, "/tenants/acme/decisions/d-1/outcome");
  });
});

test("nobody there", async () => {
  for (const url of ["http://127.0.0.1:1", "unix:///nowhere/remit.sock"])
    await assert.rejects(client({ url }).check("git/push", {}), RemitUnavailable);
});

test("question and answer", async () => {
  await withFake(reply(DENY), async (fake) => {
    const remit = client(fake, { session: "s-1", onBehalfOf: { type: "user", id: "alice" } });
    await assert.rejects(remit.check("git/push", { force: true }, { schemaDigest: "sha256:00" }), {
      name: "RemitDenied",
      message: "denied (no-force): Open a pull request instead.",
      code: "denied_by_policy",
    });
    assert.deepEqual(fake.asked, [
      {
        subject: { type: "agent", id: "coder" },
        action: { name: "call_tool" },
        resource: { type: "tool", id: "git/push" },
        context: { session: "s-1", on_behalf_of: { type: "user", id: "alice" }, schema_digest: "sha256:00", arguments: { force: true } },
      },
    ]);
    assert.match(fake.heads[0] ?? "", /^POST \/tenants\/acme\/access\/v1\/evaluation HTTP\/1\.1\r\n[^]*Bearer secret-token/);
  });
});

test("the environment, and a token that rotates", async () => {
  const folder = await mkdtemp(join(tmpdir(), "remit-"));
  const tokenFile = join(folder, "token");
  await writeFile(tokenFile, "first-token\n");
  await withFake(reply(ALLOW), async (fake) => {
    const env = { REMIT_URL: fake.url, REMIT_AGENT: "coder", REMIT_TOKEN_FILE: tokenFile };
    const remit = RemitClient.fromEnv({}, env);
    await remit.check("git/log", {});
    await writeFile(tokenFile, "second-token\n");
    await remit.check("git/log", {});
    assert.match(fake.heads[0] ?? "", /^POST \/access\/v1\/evaluation [^]*Bearer first-token/);
    assert.match(fake.heads[1] ?? "", /Bearer second-token/);
    await writeFile(tokenFile, "two\nlines\r\nX-Smuggled: yes");
    await assert.rejects(remit.check("git/log", {}), /characters that no token has/);
    await rm(tokenFile);
    await assert.rejects(remit.check("git/log", {}), RemitUnavailable);
    assert.equal(fake.asked.length, 2);
    assert.throws(() => RemitClient.fromEnv({}, { ...env, REMIT_AGENT: "" }), /REMIT_AGENT/);
  });
});

test("a Unix socket finds the token beside it", async () => {
  const folder = await mkdtemp(join(tmpdir(), "remit-"));
  await writeFile(join(folder, "token"), "local-token");
  await withFake(
    reply(ALLOW),
    async (fake) => {
      await new RemitClient({ url: fake.url, agent: "coder" }).check("git/log", {});
      assert.match(fake.heads[0] ?? "", /Bearer local-token/);
    },
    join(folder, "remit.sock"),
  );
});

test("a token goes nowhere in clear", () => {
  const refused = ["http://remit.example:8080", "http://10.0.0.1", "ftp://127.0.0.1", "remit.example", "unix://host/path", "https://", ""];
  refused.push("https://user:secret@remit.example", "https://remit.example/?tenant=x", "http://127.0.0.1.example");
  for (const url of refused) assert.throws(() => client({ url }), /url/, url);
});

test("outcomes are reported and never harm; Observe says what would be", async () => {
  await withFake(reply({ ...ALLOW, context: { ...ALLOW.context, would_be: { decision: false } } }), async (fake) => {
    const decision = await client(fake).check("git/log", {});
    assert.deepEqual(decision.wouldBe, { decision: false });
    await assert.rejects(client(fake).run(decision, () => Promise.reject(new RangeError("tool"))), RangeError);
    await assert.rejects(client(fake).run(decision, () => Promise.reject(new DOMException("stop", "AbortError"))));
    assert.deepEqual(fake.outcomes.map((o) => o.outcome), ["tool_error", "cancelled"]);
    assert.equal(await client({ url: "http://127.0.0.1:1" }).run(decision, () => 7), 7);
  });
});
