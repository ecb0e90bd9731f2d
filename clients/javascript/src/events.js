import { ForebayError } from "./errors.js";
import { sleep } from "./line.js";

const MAX_BACKOFF_MS = 5000;

/**
 * Server-sent events that are come back to: `/v1/jobs/ID/events`, a room's, a task's.
 * Yields `{id, type, data}`, each numbered event once, in order. Ends with the stream's own
 * last event (`until`), or when the server says there is nothing more (204).
 *
 * @param {string | string[]} urls
 * @param {import("./index.js").EventOptions} [options]
 * @returns {AsyncGenerator<import("./index.js").StreamEvent>}
 */
export async function* events(urls, options = {}) {
  const { key, attempts = 10, backoffMs = 100, until = ["ended"], signal = new AbortController().signal } = options;
  const list = Array.isArray(urls) ? urls : [urls];
  let after = options.after ?? "";
  let failed = 0;
  let waitMs = backoffMs;
  for (let at = 0; !signal.aborted; at += 1) {
    try {
      for await (const event of once(list[at % list.length], key, after, signal)) {
        failed = 0;
        waitMs = event.retryMs ?? backoffMs;
        if (event.id) after = event.id;
        if (event.type === "retry") continue;
        yield event;
        if (until.includes(event.type)) return;
      }
    } catch (error) {
      if (error instanceof ForebayError && error.code !== "unreachable") throw error;
      if (signal.aborted) return;
    }
    failed += 1;
    if (failed >= attempts) throw new ForebayError("unreachable", `no events after ${attempts} attempts`);
    await sleep(Math.random() * waitMs, signal);
    waitMs = Math.min(waitMs * 2, MAX_BACKOFF_MS);
  }
}

/** One connection's events. @param {string} url @param {string | undefined} key
 * @param {string} after @param {AbortSignal} signal */
async function* once(url, key, after, signal) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "text/event-stream" };
  if (after) headers["Last-Event-ID"] = after;
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(url, { headers, signal }).catch(() => {
    throw new ForebayError("unreachable", "no connection could be made");
  });
  if (response.status === 204) return;
  if (!response.ok || !response.body) throw await refusal(response);
  let rest = "";
  for await (const text of decoded(response.body)) {
    rest += text;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

/** @param {ReadableStream<Uint8Array>} body */
async function* decoded(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection is over either way
  }
}

/** @param {string} block @returns {(import("./index.js").StreamEvent & {retryMs?: number}) | null} */
function parse(block) {
  let id = "";
  let type = "message";
  let retryMs;
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line) ?? ["", "", ""];
    if (field === "id") id = value;
    else if (field === "event") type = value;
    else if (field === "data") data.push(value);
    else if (field === "retry" && /^\d+$/.test(value)) retryMs = Number(value);
  }
  if (!data.length) return retryMs === undefined ? null : { id, type: "retry", data: null, retryMs };
  return { id, type, data: JSON.parse(data.join("\n")), retryMs };
}

/** @param {Response} response */
async function refusal(response) {
  const wait = Number(response.headers.get("Retry-After"));
  const busy = response.status === 429 || response.status === 503;
  /** @type {any} */
  const body = await response.json().catch(() => ({}));
  const said = body.error ?? body;
  return new ForebayError(
    busy ? "unreachable" : String(said.code ?? `http_${response.status}`),
    String(said.message ?? said.detail ?? `the server answered ${response.status}`),
    { retryAfterS: wait || undefined },
  );
}
