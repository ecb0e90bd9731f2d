import { ForebayError } from "./errors.js";

const MAX_BACKOFF_MS = 5000;
const HELD_MESSAGES = 10_000;

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
export function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done, { once: true });
  });
}

/**
 * What every session does about a connection that may drop. The session's state says what to
 * send again; here is the line itself: lost quietly, found again with full jitter, at the next
 * of several URLs. A server that leaves says when to come back, and then that is when.
 */
export class Line {
  /**
   * @param {string | string[]} urls ws:// or wss://, all leading to the same sessions
   * @param {import("./index.js").LineOptions} options
   */
  constructor(urls, options) {
    this.urls = Array.isArray(urls) ? [...urls] : [urls];
    if (!this.urls.length) throw new ForebayError("bad_request", "a session needs at least one url");
    this.at = Math.floor(Math.random() * this.urls.length);
    this.key = options.key;
    this.ticket = options.ticket;
    this.attempts = options.attempts ?? 10;
    this.backoffMs = options.backoffMs ?? 100;
    this.Socket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.Socket) {
      throw new ForebayError("bad_request", "no WebSocket here: pass one, such as that of the package ws");
    }
    this.resumed = 0;
    this.closed = new AbortController();
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {(string | ArrayBuffer | null)[]} null: the connection ended */
    this.inbox = [];
    /** @type {(() => void) | null} */
    this.wake = null;
    /** @type {number | null} */
    this.toldWaitMs = null;
  }

  get live() {
    return this.socket !== null && this.socket.readyState === 1;
  }

  /** Hand it to the connection, if there is one; the session's state has it in any case.
   * @param {Record<string, unknown> | ArrayBufferView | ArrayBuffer} what */
  send(what) {
    if (!this.live || this.socket === null) return;
    const binary = what instanceof ArrayBuffer || ArrayBuffer.isView(what);
    this.socket.send(/** @type {any} */ (binary ? what : JSON.stringify(what)));
  }

  /** The next message as an object, or null when the connection is over. */
  async receive() {
    while (!this.inbox.length) {
      if (this.closed.signal.aborted || this.socket === null) return null;
      await /** @type {Promise<void>} */ (new Promise((resolve) => { this.wake = resolve; }));
    }
    const text = this.inbox.shift();
    return typeof text === "string" ? JSON.parse(text) : null;
  }

  /** Open a connection in place of the last one.
   * @param {Record<string, string>} [query] */
  async dial(query = {}) {
    this.drop();
    const url = new URL(this.urls[this.at]);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    if (this.ticket) url.searchParams.set("ticket", await this.ticket());
    const socket = this.key && this.Socket !== globalThis.WebSocket
      ? new (/** @type {any} */ (this.Socket))(url, { headers: { Authorization: `Bearer ${this.key}` } })
      : new this.Socket(url);
    socket.binaryType = "arraybuffer";
    this.inbox = [];
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = () => reject(new ForebayError("unreachable", "no connection could be made"));
    });
    socket.onerror = null;
    socket.onmessage = (/** @type {MessageEvent} */ event) => this.#arrived(event.data);
    socket.onclose = (/** @type {CloseEvent} */ event) => {
      const told = /retry_after_ms=(\d{1,6})/.exec(event.reason ?? "");
      if (told) this.toldWaitMs = Number(told[1]);
      if (this.socket === socket) this.#arrived(null);
    };
    this.socket = socket;
  }

  /** @param {string | ArrayBuffer | null} data */
  #arrived(data) {
    if (this.inbox.length >= HELD_MESSAGES) this.socket?.close(4000, "nobody reads");
    else this.inbox.push(data);
    this.wake?.();
    this.wake = null;
  }

  /** Connect again by `connect`. Throws after `attempts` tries in a row.
   * @param {() => Promise<void>} connect */
  async comeBack(connect) {
    let waitMs = this.backoffMs;
    const told = this.toldWaitMs;
    this.toldWaitMs = null;
    /** @type {unknown} */
    let last;
    for (let attempt = 0; attempt < this.attempts && !this.closed.signal.aborted; attempt += 1) {
      if (attempt === 0 && told !== null) await sleep(told, this.closed.signal);
      else {
        await sleep(Math.random() * waitMs, this.closed.signal); // full jitter: no herd
        waitMs = Math.min(waitMs * 2, MAX_BACKOFF_MS);
      }
      this.at = (this.at + 1) % this.urls.length;
      try {
        await connect();
        this.resumed += 1;
        return;
      } catch (error) {
        last = error;
        if (!(error instanceof ForebayError) || !WORTH_A_RETRY.has(error.code)) throw error;
        if (error.retryAfterS) waitMs = Math.max(waitMs, error.retryAfterS * 1000);
      }
    }
    if (this.closed.signal.aborted) return;
    throw new ForebayError("unreachable", `no connection after ${this.attempts} attempts`, {
      details: { last },
    });
  }

  drop() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  close() {
    this.closed.abort();
    this.drop();
    this.wake?.();
    this.wake = null;
  }
}

const WORTH_A_RETRY = new Set(["unreachable", "queue_full", "wait_too_long", "draining", "no_workers"]);

/** 128 random bits, in hex. */
export function newId() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
