/**
 * The question on the wire: AuthZEN Authorization API 1.0 over https, loopback http or a Unix socket.
 *
 * `check` resolves only for an allow; everything else rejects. Must never follow a redirect, never send a token in clear to another
 * machine, and never put a token or an argument into a message. (node:https, not fetch: fetch takes neither a CA nor a socket.)
 */
import { readFile } from "node:fs/promises";
import http from "node:http";
import https from "node:https";
import { isIP } from "node:net";
import { dirname, join } from "node:path";

import { assertJson } from "./json.js";

const MAX_ANSWER = 1 << 20;
const REPORT_MS = 1_000;

/** The call must not be made. Its message may be shown to the model. */
export class RemitError extends Error {
  constructor(message: string) {
    super(message);
    this.name = new.target.name;
  }
}

/** There is no answer: Remit can't be reached, is late, or refused the question. */
export class RemitUnavailable extends RemitError {}

/** Remit's answer is not an allow. `code` is stable, `rule` is the author's word, `reason` is for people and models. */
export class RemitDenied extends RemitError {
  constructor(readonly code: string, readonly reason: string, readonly rule?: string, readonly decisionId?: string) {
    super(`denied (${rule ?? code}): ${reason}`);
  }
}

/** An allow. `arguments` are the ones that were checked, in a copy that nobody else holds: call the tool with these. */
export interface Decision {
  readonly id?: string | undefined;
  readonly code?: string | undefined;
  readonly reason?: string | undefined;
  readonly arguments: Record<string, unknown>;
  readonly wouldBe?: unknown;
}

export type Outcome = "success" | "tool_error" | "failed" | "cancelled" | "not_sent";

export interface RemitOptions {
  /** `https://HOST[:PORT]`, `http://` to a loopback address, or `unix:///PATH`. */
  url: string;
  agent: string;
  tenant?: string | undefined;
  token?: string | undefined;
  /** Read again for each question, because projected tokens rotate. Of a Unix socket: `token` beside it. */
  tokenFile?: string | undefined;
  caFile?: string | undefined;
  timeoutMs?: number | undefined;
  session?: string | undefined;
  onBehalfOf?: string | { type: "user" | "agent"; id: string } | undefined;
}

/** One agent's way to Remit. */
export class RemitClient {
  readonly #options: RemitOptions;
  readonly #url: URL;
  readonly #prefix: string;
  readonly #timeout: number;

  constructor(options: RemitOptions) {
    const url = URL.canParse(options.url) ? new URL(options.url) : undefined;
    if (!url || !["https:", "http:", "unix:"].includes(url.protocol) || (url.protocol === "unix:") !== (url.hostname === "") || url.username || url.password || url.search || url.hash)
      throw new TypeError("url: must be https://HOST[:PORT], http:// to a loopback address, or unix:///PATH");
    if (url.protocol === "http:" && !loopback(url.hostname))
      throw new TypeError("url: must be https, or http to a loopback address: a token is no secret on an open wire");
    const unix = url.protocol === "unix:";
    const { token, tokenFile = unix && token === undefined ? join(dirname(decodeURI(url.pathname)), "token") : undefined } = options;
    if ((token === undefined) === (tokenFile === undefined)) throw new TypeError("token, tokenFile: exactly one is needed");
    if (!options.agent) throw new TypeError("agent: must be named");
    this.#timeout = options.timeoutMs ?? 5_000;
    if (!(this.#timeout > 0)) throw new TypeError("timeoutMs: must be above zero");
    this.#options = { ...options, tokenFile };
    this.#url = url;
    this.#prefix = (unix ? "" : url.pathname.replace(/\/+$/, "")) + (options.tenant ? `/tenants/${encodeURIComponent(options.tenant)}` : "");
  }

  /** From REMIT_URL, REMIT_TENANT, REMIT_AGENT, REMIT_TOKEN_FILE and REMIT_CA_FILE. What is passed wins. */
  static fromEnv(more: Partial<RemitOptions> = {}, env: NodeJS.ProcessEnv = process.env): RemitClient {
    const url = more.url ?? env["REMIT_URL"];
    const agent = more.agent ?? env["REMIT_AGENT"];
    if (!url) throw new TypeError("REMIT_URL: must be set");
    if (!agent) throw new TypeError("REMIT_AGENT: must be set");
    const tokenFile = more.token === undefined ? env["REMIT_TOKEN_FILE"] || undefined : undefined;
    return new RemitClient({ tenant: env["REMIT_TENANT"] || undefined, tokenFile, caFile: env["REMIT_CA_FILE"] || undefined, ...more, url, agent });
  }

  /** Resolves if the call may be made; rejects with RemitDenied or RemitUnavailable if not, at the latest after the timeout. */
  async check(tool: string, args: Record<string, unknown>, more: { schemaDigest?: string } = {}): Promise<Decision> {
    let body: string;
    try {
      assertJson(args);
      if (args === null || typeof args !== "object" || Array.isArray(args)) throw new TypeError("`arguments` must be an object");
      const { agent, session, onBehalfOf } = this.#options;
      const context = { session, on_behalf_of: onBehalfOf, schema_digest: more.schemaDigest, arguments: args };
      body = JSON.stringify({ subject: { type: "agent", id: agent }, action: { name: "call_tool" }, resource: { type: "tool", id: tool }, context });
    } catch (error) {
      throw new RemitUnavailable(`Remit can't be asked: ${(error as Error).message}`);
    }
    const { status, text } = await this.#post("/access/v1/evaluation", body, this.#timeout);
    // From the bytes that were sent: whatever happened to `args` meanwhile is not what was checked.
    return allow(status, text, (JSON.parse(body) as { context: { arguments: Record<string, unknown> } }).context.arguments);
  }

  /** Makes an allowed call and reports what became of it. A report that is lost changes nothing. */
  async run<T>(decision: Decision, call: () => T | Promise<T>, judge: (result: T) => Outcome = () => "success"): Promise<T> {
    const begun = performance.now();
    const report = async (outcome: Outcome) => {
      if (decision.id === undefined) return;
      const body = JSON.stringify({ outcome, duration_ms: Math.round(performance.now() - begun) });
      await this.#post(`/decisions/${encodeURIComponent(decision.id)}/outcome`, body, REPORT_MS).catch(() => undefined);
    };
    let result: T;
    try {
      result = await call();
    } catch (error) {
      // LangGraph's interrupt takes the call back: it comes again, and is asked again, when the graph goes on.
      await report(["AbortError", "GraphInterrupt"].includes((error as Error | undefined)?.name ?? "") ? "cancelled" : "tool_error");
      throw error;
    }
    await report(judge(result));
    return result;
  }

  async #post(path: string, body: string, timeout: number): Promise<{ status: number; text: string }> {
    // One clock for all of it: names, TLS, and a peer that drips.
    const signal = AbortSignal.timeout(timeout);
    try {
      const { token = (await readFile(this.#options.tokenFile ?? "", { encoding: "latin1", signal })).trim(), caFile } = this.#options;
      if (!/^[!-~]+$/.test(token)) throw new RemitUnavailable("Remit can't be asked: the token is empty or has characters that no token has");
      const headers = { authorization: `Bearer ${token}`, "content-type": "application/json", "content-length": Buffer.byteLength(body) };
      const common = { method: "POST", path: this.#prefix + path, headers, agent: false as const, signal };
      const { protocol, hostname, port, pathname } = this.#url;
      const host = hostname.replace(/^\[|\]$/g, "");
      const request =
        protocol === "unix:"
          ? http.request({ ...common, socketPath: decodeURI(pathname) })
          : protocol === "http:"
            ? http.request({ ...common, host, port })
            : https.request({ ...common, host, port, ...(caFile ? { ca: await readFile(caFile, { signal }) } : {}) });
      return await new Promise((resolve, reject) => {
        request.on("error", reject);
        request.on("response", (response) => {
          const chunks: Buffer[] = [];
          let length = 0;
          response.on("error", reject);
          response.on("data", (chunk: Buffer) => {
            length += chunk.length;
            if (length > MAX_ANSWER) request.destroy(new RemitUnavailable("Remit's answer can't be read: it is too long"));
            else chunks.push(chunk);
          });
          response.on("end", () => resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() }));
        });
        request.end(body);
      });
    } catch (error) {
      if (error instanceof RemitError) throw error;
      if (signal.aborted) throw new RemitUnavailable(`Remit gave no answer within ${timeout} ms`);
      throw new RemitUnavailable(`Remit can't be reached: ${(error as NodeJS.ErrnoException).code ?? "no connection"}`);
    }
  }
}

/** The decision, if and only if the answer is an allow. */
function allow(status: number, raw: string, args: Record<string, unknown>): Decision {
  let answer: Record<string, unknown> = {};
  try {
    const parsed: unknown = JSON.parse(raw);
    if (record(parsed)) answer = parsed;
  } catch {
    // Judged below, like an object without a decision.
  }
  if (status !== 200)
    throw new RemitUnavailable(`Remit refused the question: ${status} ${text(answer, "code") ?? "error"}: ${text(answer, "message") ?? "no reason given"}`);
  const context = answer["context"] === undefined ? {} : answer["context"];
  if (typeof answer["decision"] !== "boolean" || !record(context)) throw new RemitUnavailable("Remit's answer can't be read");
  const [code, reason, id] = [text(context, "code"), text(context, "reason"), text(context, "decision_id")];
  if (answer["decision"] !== true) throw new RemitDenied(code ?? "denied", reason ?? "Remit gave no reason.", text(context, "rule"), id);
  return { id, code, reason, arguments: args, wouldBe: context["would_be"] };
}

function record(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(map: Record<string, unknown>, key: string): string | undefined {
  const value = map[key];
  return typeof value === "string" && value !== "" ? value.slice(0, 2_000) : undefined;
}

function loopback(hostname: string): boolean {
  return hostname === "localhost" || hostname === "[::1]" || (isIP(hostname) === 4 && hostname.startsWith("127."));
}
