/** A decision point that can misbehave: what a client must survive without making a call. */
import { createServer, type AddressInfo, type Socket } from "node:net";

import { RemitClient, type RemitOptions } from "remit-sdk";

export const ALLOW = { decision: true, context: { code: "allowed", reason: "ok", decision_id: "d-1" } };
export const DENY = { decision: false, context: { code: "denied_by_policy", rule: "no-force", reason: "Open a pull request instead." } };

export type Behaviour = string | Buffer | ((socket: Socket) => void);

export function reply(body: unknown, status = "200 OK", headers = ""): Buffer {
  const raw = Buffer.isBuffer(body) ? body : Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
  return Buffer.concat([Buffer.from(`HTTP/1.1 ${status}\r\nContent-Type: application/json\r\n${headers}Content-Length: ${raw.length}\r\n\r\n`), raw]);
}

export interface Fake {
  url: string;
  answer: Behaviour;
  /** Bodies of the evaluations, the heads of all requests, and the outcomes that were reported. */
  asked: any[];
  heads: string[];
  outcomes: { path: string; outcome: string; duration_ms: number }[];
}

export function client(fake: { url: string }, more: Partial<RemitOptions> = {}): RemitClient {
  return new RemitClient({ url: fake.url, agent: "coder", tenant: "acme", token: "secret-token", timeoutMs: 30_000, ...more });
}

/** Runs `body` beside a decision point that answers each evaluation with `answer`. */
export async function withFake(answer: Behaviour, body: (fake: Fake) => Promise<void>, unix?: string): Promise<void> {
  const sockets = new Set<Socket>();
  const fake: Fake = { url: "", answer, asked: [], heads: [], outcomes: [] };
  const server = createServer((socket) => {
    sockets.add(socket);
    let received = Buffer.alloc(0);
    socket.on("error", () => undefined);
    socket.on("data", (chunk) => {
      received = Buffer.concat([received, chunk]);
      const end = received.indexOf("\r\n\r\n");
      if (end < 0) return;
      const head = received.subarray(0, end).toString();
      const length = Number(/content-length: (\d+)/i.exec(head)?.[1]);
      if (received.length < end + 4 + length) return;
      const sent = JSON.parse(received.subarray(end + 4).toString());
      const path = head.split(" ")[1] ?? "";
      fake.heads.push(head);
      if (path.endsWith("/outcome")) {
        fake.outcomes.push({ path, ...sent });
        socket.end("HTTP/1.1 204 No Content\r\n\r\n");
      } else {
        fake.asked.push(sent);
        if (typeof fake.answer === "function") fake.answer(socket);
        else socket.end(fake.answer);
      }
    });
  });
  await new Promise<void>((listening) => (unix ? server.listen(unix, listening) : server.listen(0, "127.0.0.1", listening)));
  fake.url = unix ? `unix://${unix}` : `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    await body(fake);
  } finally {
    for (const socket of sockets) socket.destroy();
    server.close();
  }
}
