// One scenario through an official TypeScript client SDK, unmodified. The scenario is JSON on stdin, the outcome JSON on stdout:
//
//   {"command": ["remit", …] | "url": "http://…", "env": {…}, "headers": {…}, "sdk": 1 | 2, "era": "legacy" | "auto" | "2026-07-28",
//    "sampling": "what the model says", "elicitation": {"action": …, "content": {…}}, "roots": ["file:///…"],
//    "steps": [{"do": "list_tools"}, {"do": "call_tool", "name": …, "arguments": {…}}, …]}
//
// sdk 1 is @modelcontextprotocol/sdk (initialize, sessions), sdk 2 @modelcontextprotocol/client (both eras). client.py takes the same.
import { existsSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages lie where PEERS says, not beside this file.
const require = createRequire(pathToFileURL(`${process.env.PEERS}/package.json`));
const load = (name) => import(pathToFileURL(require.resolve(name)));

let input = "";
for await (const chunk of process.stdin) input += chunk;
const scenario = JSON.parse(input);
const asked = []; // what the server asked of this client
const told = []; // what it notified

const capabilities = {};
if (scenario.sampling !== undefined) capabilities.sampling = {};
if (scenario.elicitation !== undefined) capabilities.elicitation = {};
if (scenario.roots !== undefined) capabilities.roots = { listChanged: true };

const answers = {
  "sampling/createMessage": () => ({ model: "test", role: "assistant", content: { type: "text", text: scenario.sampling } }),
  "elicitation/create": () => scenario.elicitation,
  "roots/list": () => ({ roots: scenario.roots.map((uri) => ({ uri })) }),
};
const wanted = {
  "sampling/createMessage": scenario.sampling !== undefined,
  "elicitation/create": scenario.elicitation !== undefined,
  "roots/list": scenario.roots !== undefined,
};

async function older() {
  const [{ Client }, { StdioClientTransport }, { StreamableHTTPClientTransport }, types] = await Promise.all([
    load("@modelcontextprotocol/sdk/client/index.js"),
    load("@modelcontextprotocol/sdk/client/stdio.js"),
    load("@modelcontextprotocol/sdk/client/streamableHttp.js"),
    load("@modelcontextprotocol/sdk/types.js"),
  ]);
  const client = new Client({ name: "peer-typescript-1", version: "0" }, { capabilities });
  const schemas = {
    "sampling/createMessage": types.CreateMessageRequestSchema,
    "elicitation/create": types.ElicitRequestSchema,
    "roots/list": types.ListRootsRequestSchema,
  };
  for (const [method, schema] of Object.entries(schemas)) {
    if (wanted[method]) client.setRequestHandler(schema, (request) => (asked.push(request), answers[method]()));
  }
  return { client, StdioClientTransport, StreamableHTTPClientTransport };
}

async function newer() {
  const [{ Client, StreamableHTTPClientTransport }, { StdioClientTransport }] = await Promise.all([
    load("@modelcontextprotocol/client"),
    load("@modelcontextprotocol/client/stdio"),
  ]);
  const era = scenario.era ?? "auto";
  const mode = era === "auto" || era === "legacy" ? era : { pin: era };
  const client = new Client({ name: "peer-typescript-2", version: "0" }, { capabilities, versionNegotiation: { mode } });
  for (const method of Object.keys(answers)) {
    if (wanted[method]) client.setRequestHandler(method, (request) => (asked.push(request), answers[method]()));
  }
  return { client, StdioClientTransport, StreamableHTTPClientTransport };
}

const { client, StdioClientTransport, StreamableHTTPClientTransport } = await (scenario.sdk === 2 ? newer() : older());
client.fallbackNotificationHandler = async (notification) => void told.push(notification);

const [command, ...args] = scenario.command ?? [];
const transport = scenario.url
  ? new StreamableHTTPClientTransport(new URL(scenario.url), { requestInit: { headers: scenario.headers ?? {} } })
  : new StdioClientTransport({ command, args, env: { ...process.env, ...scenario.env }, stderr: "inherit" });

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Pages are walked by hand: both SDKs then do the same. */
async function all(list, member) {
  const found = [];
  let cursor;
  do {
    const page = await list(cursor === undefined ? undefined : { cursor });
    found.push(...page[member]);
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  return { [member]: found };
}

async function run(step) {
  const options = { timeout: step.timeout_ms ?? 60_000 };
  const progress = [];
  if (step.progress) options.onprogress = (p) => void progress.push(p);
  const withProgress = (result) => (step.progress ? { ...result, progress } : result);
  if (step.cancel_after_ms !== undefined) {
    const aborter = new AbortController();
    options.signal = aborter.signal;
    setTimeout(() => aborter.abort("cancelled by the scenario"), step.cancel_after_ms);
  }
  switch (step.do) {
    case "list_tools": return all((p) => client.listTools(p), "tools");
    case "call_tool": {
      const params = { name: step.name, arguments: step.arguments ?? {} };
      const result = scenario.sdk === 2
        ? await client.callTool(params, options)
        : await client.callTool(params, undefined, options);
      return withProgress(result);
    }
    case "list_resources": return all((p) => client.listResources(p), "resources");
    case "list_resource_templates": return all((p) => client.listResourceTemplates(p), "resourceTemplates");
    case "read_resource": return client.readResource({ uri: step.uri }, options);
    case "subscribe": return client.subscribeResource({ uri: step.uri }, options);
    case "unsubscribe": return client.unsubscribeResource({ uri: step.uri }, options);
    case "list_prompts": return all((p) => client.listPrompts(p), "prompts");
    case "get_prompt": return client.getPrompt({ name: step.name, arguments: step.arguments }, options);
    case "complete": return client.complete({ ref: step.ref, argument: step.argument }, options);
    case "ping": return client.ping(options);
    case "set_level": return client.setLoggingLevel(step.level, options);
    case "touch": return void writeFileSync(step.path, "");
    case "wait_for": {
      while (!existsSync(step.path)) await sleep(20);
      return;
    }
    // Until the server has notified this.
    case "wait_notified": {
      while (!told.some((n) => n.method === step.method)) await sleep(20);
      return;
    }
    default: throw new Error(`no such step: ${step.do}`);
  }
}

const failure = (e) => ({ ok: false, error: { name: e?.name, code: e?.code, message: String(e?.message ?? e), data: e?.data } });
const out = { steps: [] };
try {
  await client.connect(transport, { timeout: 60_000 });
  out.protocol_version = client.getNegotiatedProtocolVersion?.() ?? transport.protocolVersion ?? null;
  out.server = client.getServerVersion() ?? null;
  out.capabilities = client.getServerCapabilities() ?? null;
  for (const step of scenario.steps ?? []) {
    try {
      out.steps.push({ ok: true, result: (await run(step)) ?? null });
    } catch (e) {
      out.steps.push(failure(e));
    }
  }
} catch (e) {
  out.connect = failure(e);
}
out.asked = asked;
out.told = told;
// Sessions end with DELETE where there are any.
if (scenario.url && transport.terminateSession) await transport.terminateSession().catch((e) => (out.terminate = failure(e)));
await client.close().catch(() => {});
process.stdout.write(JSON.stringify(out) + "\n", () => process.exit(0));
