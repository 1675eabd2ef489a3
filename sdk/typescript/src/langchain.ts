/**
 * LangChain agents, and tools for LangGraph's ToolNode: every tool call is checked before its handler runs.
 *
 * A refusal becomes the tool's message, with status `error` and the author's reason, so that the model learns what to do instead.
 */
import { createMiddleware, ToolMessage, type AgentMiddleware } from "langchain";

import { RemitError, type Decision, type Outcome, type RemitClient } from "./client.js";
import { defaultClient } from "./guard.js";

export interface ToolOptions {
  /** Tools are `server/name`, where `names` says nothing else. */
  server: string;
  names?: Record<string, string>;
  client?: RemitClient;
}

interface Call {
  name: string;
  args: Record<string, unknown>;
  id?: string | undefined;
}

/**
 * `createAgent({…, middleware: […, remitMiddleware({server: "app"})]})`: last, because the first is outermost, and a middleware further
 * in could change the call after it was checked.
 */
export function remitMiddleware(options: ToolOptions): AgentMiddleware {
  return createMiddleware({
    name: "RemitMiddleware",
    wrapToolCall: (request, handler) =>
      checked(options, request.toolCall, request.tool, (args) => handler({ ...request, toolCall: { ...request.toolCall, args } })),
  });
}

/** The tool with its `invoke` checked, for a graph of your own: `new ToolNode([remitTool(search, {server: "app"})])`. */
export function remitTool<T extends { name: string; invoke(input: any, config?: any): Promise<any> }>(tool: T, options: ToolOptions): T {
  const invoke = (input: any, config?: any): Promise<unknown> => {
    const call: Call = input?.type === "tool_call" ? input : { name: tool.name, args: input };
    return checked(options, { ...call, name: tool.name }, tool, (args) =>
      tool.invoke(call === input ? { ...input, args } : args, config),
    );
  };
  return new Proxy(tool, {
    // What else runs the tool goes through `invoke`, or would pass by the check and does not exist.
    get: (target, key) =>
      key === "invoke" || key === "call" ? invoke : key === "_call" || key === "func" ? undefined : Reflect.get(target, key, target),
  });
}

async function checked<R>(options: ToolOptions, call: Call, tool: unknown, handler: (args: Record<string, unknown>) => R | Promise<R>) {
  let client: RemitClient;
  let decision: Decision;
  try {
    client = options.client ?? defaultClient();
    const named = Object.hasOwn(options.names ?? {}, call.name) ? options.names?.[call.name] : undefined;
    decision = await client.check(named ?? `${options.server}/${call.name}`, await withDefaults(tool, call.args));
  } catch (error) {
    if (!(error instanceof RemitError)) throw error;
    return new ToolMessage({ content: error.message, name: call.name, tool_call_id: call.id ?? "", status: "error" });
  }
  return client.run(decision, () => handler(decision.arguments), judge);
}

/** What the model sent, and the defaults that the tool's schema would fill in. */
async function withDefaults(tool: unknown, args: Record<string, unknown>): Promise<Record<string, unknown>> {
  const schema = (tool as { schema?: { safeParseAsync?: (args: unknown) => Promise<{ success: boolean; data?: unknown }> } } | undefined)?.schema;
  const parsed = await schema?.safeParseAsync?.(args);
  // What does not parse is checked as it is: the tool will refuse it by itself.
  return parsed?.success && typeof args === "object" ? { ...(parsed.data as object), ...args } : args;
}

function judge(result: unknown): Outcome {
  return (result as { status?: unknown } | undefined)?.status === "error" ? "tool_error" : "success";
}
