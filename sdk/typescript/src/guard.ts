/** A wrapper of a tool's function: it runs only after an allow, with exactly the arguments that were checked. */
import { RemitClient, RemitUnavailable } from "./client.js";

let fromEnv: RemitClient | undefined;

/** The client that the environment describes, made once. */
export function defaultClient(): RemitClient {
  try {
    return (fromEnv ??= RemitClient.fromEnv());
  } catch (error) {
    throw new RemitUnavailable(`Remit can't be asked: ${(error as Error).message}`);
  }
}

export interface GuardOptions<A> {
  client?: RemitClient | undefined;
  /** Makes the arguments whole before the check, with defaults and coercions: `schema.parse` of zod, for example. */
  parse?: (args: A) => A;
}

/**
 * `tool` (`server/name`) is checked before each call; RemitDenied or RemitUnavailable instead of the call.
 *
 * The first parameter of the function is the arguments, one object of plain JSON, and it gets a copy. Further parameters are not the
 * tool's caller's, are not checked, and pass as they are. Defaults inside the function are not seen: give them with `parse`.
 */
export function guard<A extends object, R, Rest extends unknown[]>(
  tool: string,
  fn: (args: A, ...rest: Rest) => R | Promise<R>,
  { client, parse = (args) => args }: GuardOptions<A> = {},
): (args: A, ...rest: Rest) => Promise<R> {
  return async (args, ...rest) => {
    const remit = client ?? defaultClient();
    const decision = await remit.check(tool, parse(args) as Record<string, unknown>);
    return remit.run(decision, () => fn(decision.arguments as A, ...rest));
  };
}
