/**
 * A client of the Model Context Protocol's SDK whose calls are checked, with the digest of the definition that was listed.
 *
 * `remit mcp-proxy` guards a whole process. This is for programs that hold the client themselves.
 */
import { RemitDenied, RemitError, RemitUnavailable, type Decision, type RemitClient } from "./client.js";
import { defaultClient } from "./guard.js";
import { definitionDigest } from "./json.js";

// What cannot call a tool. A way that is not here does not exist: the next version of the SDK may bring another.
const PASSES = [
  "connect", "close", "getServerCapabilities", "getServerVersion", "getInstructions", "ping", "complete", "setLoggingLevel",
  "listPrompts", "getPrompt", "listResources", "listResourceTemplates", "readResource", "subscribeResource", "unsubscribeResource",
] as const;

/** What is used of the SDK's Client. */
export interface McpClient {
  listTools(params?: any, options?: any): Promise<{ tools: { name: string }[]; nextCursor?: string | undefined }>;
  callTool(params: any, ...rest: any[]): Promise<any>;
}

type Passed = (typeof PASSES)[number] | "listTools" | "callTool";

/**
 * Stands for a Client; a refused call is a result with `isError` and the author's reason.
 *
 * `server` is your name for it, never the server's. What must not be bypassed must not be handed out: keep the client to yourself.
 */
export function remitClient<C extends McpClient>(client: C, options: { server: string; client?: RemitClient }): Pick<C, Extract<Passed, keyof C>> {
  const digests = new Map<string, Set<string>>();

  const listTools = async (params?: { cursor?: string }, more?: unknown) => {
    const listed = await client.listTools(params, more);
    for (const tool of listed.tools) {
      const seen = digests.get(tool.name) ?? new Set();
      digests.set(tool.name, seen.add(definitionDigest(tool as Record<string, unknown> & { name: string })));
    }
    return listed;
  };

  const listAll = async (): Promise<void> => {
    let cursor: string | undefined;
    for (let page = 0; page < 100; page++) {
      cursor = (await listTools(cursor === undefined ? undefined : { cursor })).nextCursor;
      if (cursor === undefined) return;
    }
    throw new RemitUnavailable("Remit can't be asked: the server's list of tools does not end");
  };

  const digest = async (name: string): Promise<string> => {
    if (!digests.has(name)) await listAll();
    const seen = [...(digests.get(name) ?? [])];
    if (seen[0] !== undefined && seen.length === 1) return seen[0];
    const why = seen.length > 1 ? "changed its definition during this session" : "is not listed by its server";
    throw new RemitDenied("tool_changed", `${options.server}/${name} ${why}, so that nobody has reviewed this call.`);
  };

  const callTool = async (params: { name: string; arguments?: Record<string, unknown> }, ...rest: unknown[]) => {
    const name = params.name;
    let remit: RemitClient;
    let decision: Decision;
    try {
      remit = options.client ?? defaultClient();
      decision = await remit.check(`${options.server}/${name}`, params.arguments ?? {}, { schemaDigest: await digest(name) });
    } catch (error) {
      if (!(error instanceof RemitError)) throw error;
      return { content: [{ type: "text", text: error.message }], isError: true };
    }
    const sent = { ...params, name, arguments: decision.arguments };
    return remit.run(decision, () => client.callTool(sent, ...rest), (result) => (result?.isError ? "tool_error" : "success"));
  };

  const passed = Object.fromEntries(
    PASSES.map((name) => [name, (client as Record<string, unknown>)[name]] as const)
      .filter(([, method]) => typeof method === "function")
      .map(([name, method]) => [name, (method as (...args: unknown[]) => unknown).bind(client)]),
  );
  return Object.freeze({ ...passed, listTools, callTool }) as unknown as Pick<C, Extract<Passed, keyof C>>;
}
