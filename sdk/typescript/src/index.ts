/**
 * Asks Remit before an agent's tool is called, and calls it only after an allow.
 *
 * Must never turn a missing, late or unreadable answer into an allow. Nothing here decides.
 */
export { RemitClient, RemitDenied, RemitError, RemitUnavailable, type Decision, type Outcome, type RemitOptions } from "./client.js";
export { guard, type GuardOptions } from "./guard.js";
