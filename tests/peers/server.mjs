// A small server on the official TypeScript server SDK 2, for what no published reference server speaks yet: protocol 2026-07-28
// (the reference servers are built on SDK 1). Both eras; `node server.mjs stdio` or `node server.mjs PORT` (path /mcp).
//
// NOTES: folder in which write_note writes. DESCRIPTION: another description for read_note, as a server that changed its mind.
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.PEERS}/package.json`));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { McpServer, createMcpHandler, inputRequired, inputResponse, fromJsonSchema } = await load("@modelcontextprotocol/server");
const { serveStdio } = await load("@modelcontextprotocol/server/stdio");

const notes = process.env.NOTES ?? ".";
const text = (text) => ({ content: [{ type: "text", text }] });
const object = (properties, required = []) => fromJsonSchema({ type: "object", properties, required });

function build() {
  const server = new McpServer({ name: "notes", version: "1.0.0" });
  server.registerTool(
    "read_note",
    {
      description: process.env.DESCRIPTION ?? "Reads a note.",
      inputSchema: object({ name: { type: "string", "x-mcp-header": "Note" } }, ["name"]),
      annotations: { readOnlyHint: true },
    },
    ({ name }) => text(readFileSync(join(notes, name), "utf8")),
  );
  server.registerTool(
    "write_note",
    {
      description: "Writes a note.",
      inputSchema: object({ name: { type: "string" }, text: { type: "string" } }, ["name", "text"]),
    },
    ({ name, text: body }) => (writeFileSync(join(notes, name), body), text(`wrote ${name}`)),
  );
  server.registerTool(
    "count",
    { description: "Counts, and says how far it is.", inputSchema: object({ to: { type: "integer" } }, ["to"]) },
    async ({ to }, ctx) => {
      const token = ctx.mcpReq._meta?.progressToken;
      for (let n = 1; n <= to; n++) {
        if (token !== undefined) {
          const params = { progressToken: token, progress: n, total: to };
          await ctx.mcpReq.notify({ method: "notifications/progress", params });
        }
        await new Promise((done) => setTimeout(done, 10));
      }
      return text(`counted to ${to}`);
    },
  );
  server.registerTool(
    "greet",
    { description: "Asks for a name, then greets.", inputSchema: object({}) },
    (_args, ctx) => {
      const answer = inputResponse(ctx.mcpReq.inputResponses, "name");
      if (answer.kind === "elicit") return text(`hello ${answer.content?.name ?? "nobody"}`);
      const requestedSchema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
      return inputRequired({ inputRequests: { name: inputRequired.elicit({ message: "Your name?", requestedSchema }) } });
    },
  );
  server.registerResource("motto", "notes://motto", { mimeType: "text/plain" }, (uri) => ({
    contents: [{ uri: uri.href, text: "write it down" }],
  }));
  return server;
}

const where = process.argv[2] ?? "stdio";
if (where === "stdio") {
  serveStdio(build);
} else {
  const { toNodeHandler } = await load("@modelcontextprotocol/node");
  const handler = toNodeHandler(createMcpHandler(build));
  createServer((request, response) => {
    if (new URL(request.url, "http://localhost").pathname === "/mcp") return handler(request, response);
    response.writeHead(404).end();
  }).listen(Number(where), "127.0.0.1", () => console.error(`listening on ${where}`));
}
