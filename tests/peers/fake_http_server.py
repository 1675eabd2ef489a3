"""An MCP server for tests over streamable HTTP (up to 2025-11-25) at http://127.0.0.1:PORT/mcp, with sessions and answers in JSON. Writes
every request that it gets to --log, one JSON object with method, headers and body a line, before it reads it.

--port PORT    where it listens
--tools FILE   the tools that it lists; read again each time
"""

import argparse
import json
import os
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--tools", required=True)
parser.add_argument("--log", required=True)
args = parser.parse_args()

log = os.open(args.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
sessions = set()


def result(method, params):
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "fake", "version": "1"}}
    if method == "tools/list":
        with open(args.tools) as file:
            return {"tools": json.load(file)}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": "done " + params["name"]}], "isError": False}
    return {} if method == "ping" else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def got(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        got = {"method": self.command, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body}
        os.write(log, json.dumps(got).encode() + b"\n")
        return body

    def answer(self, status, message=None, session=None):
        body = b"" if message is None else json.dumps(message).encode()
        self.send_response(status)
        if body:
            self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if session:
            self.send_header("mcp-session-id", session)
        self.end_headers()
        self.wfile.write(body)

    def known(self):
        return self.path == "/mcp" and self.headers.get("mcp-session-id") in sessions

    def do_POST(self):
        message = json.loads(self.got())
        method, session = message.get("method"), None
        if method == "initialize" and self.path == "/mcp":
            session = uuid.uuid4().hex
            sessions.add(session)
        elif not self.known():
            return self.answer(404)
        if "id" not in message or method is None:
            return self.answer(202)
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        value = result(method, message.get("params") or {})
        if value is None:
            answer["error"] = {"code": -32601, "message": "Method not found"}
        else:
            answer["result"] = value
        self.answer(200, answer, session)

    def do_DELETE(self):
        self.got()
        if not self.known():
            return self.answer(404)
        sessions.discard(self.headers["mcp-session-id"])
        self.answer(204)

    def do_GET(self):
        self.got()
        self.answer(405)


ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever()
