/**
 * JSON as it is checked, and the canonical form (RFC 8785) of a tool's definition.
 *
 * Must never let a value through that the check and the tool could read differently.
 */
import { createHash } from "node:crypto";

const DEPTH = 64;
const DEFINITION = ["name", "title", "description", "inputSchema", "outputSchema", "annotations"];

/** Throws, with the path, for anything that is not plain JSON. A property that is `undefined` is absent. */
export function assertJson(value: unknown, path = "arguments", depth = 0): void {
  if (value === null || typeof value === "string" || typeof value === "boolean" || Number.isFinite(value)) return;
  const proto: unknown = typeof value === "object" ? Object.getPrototypeOf(value) : undefined;
  if (depth < DEPTH && Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) assertJson(value[i], `${path}.${i}`, depth + 1);
  } else if (depth < DEPTH && (proto === Object.prototype || proto === null)) {
    for (const [key, member] of Object.entries(value as object)) {
      // A copy made by assignment would turn this one into a prototype: a tool would read what no check has seen.
      if (key === "__proto__") throw new TypeError(`\`${path}.${key}\` is not taken`);
      if (member !== undefined) assertJson(member, `${path}.${key}`, depth + 1);
    }
  } else {
    throw new TypeError(`\`${path}\` (${Array.isArray(value) ? "too deep" : typeof value}) is not a plain JSON value`);
  }
}

/** Digest of a tool's definition as an MCP server lists it; `_meta`, `icons` and what else a client need not know left out. */
export function definitionDigest(tool: Record<string, unknown>): string {
  const picked = Object.fromEntries(DEFINITION.filter((key) => tool[key] !== undefined).map((key) => [key, tool[key]]));
  return `sha256:${createHash("sha256").update(canonical(picked)).digest("hex")}`;
}

/** RFC 8785. Numbers and strings are JSON.stringify's own, which is where the RFC has them from; keys sort by UTF-16 code units. */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const members = Object.entries(value).filter(([, member]) => member !== undefined);
    members.sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${members.map(([key, member]) => `${canonical(key)}:${canonical(member)}`).join(",")}}`;
  }
  if (typeof value === "number" && !Number.isFinite(value)) throw new TypeError("a number of JSON is finite");
  if (typeof value === "string" && !value.isWellFormed()) throw new TypeError("text must not have lone surrogates");
  return JSON.stringify(value);
}
