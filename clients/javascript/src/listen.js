import { ForebayError } from "./errors.js";
import { Line, newId, sleep } from "./line.js";

const FRAME_SAMPLES = 16 * 1024;

/**
 * Sound in, words out, over a connection that may drop (`/v1/listen`).
 *
 *   const ear = new ListenSession("ws://127.0.0.1:8600/v1/listen", { language: "en" });
 *   microphone.onsamples = (samples) => ear.say(samples);   // Int16Array, mono
 *   for await (const news of ear) if (news.type === "final") write(news.text);
 */
export class ListenSession {
  /** @type {{first: number, samples: Int16Array}[]} what the server is not known to have */
  #held = [];
  #sessionId = newId();
  #said = 0;
  #stored = 0;
  #lastEvent = 0;
  #ended = false;
  #cancelled = false;
  #started = false;
  #known = false;
  #over = false;

  /** @param {string | string[]} urls @param {import("./index.js").ListenOptions} [options] */
  constructor(urls, options = {}) {
    const { sampleRate = 16000, holdS = 60, language, model, partials, queue } = options;
    this.line = new Line(urls, options);
    this.sampleRate = sampleRate;
    this.holdS = holdS;
    this.extra = { language, model, partials, queue };
    this.text = "";
  }

  get resumed() {
    return this.line.resumed;
  }

  /** Seconds of sound that the server is not known to have. */
  get heldS() {
    return (this.#said - this.#stored) / this.sampleRate;
  }

  /** Mono samples. Resolves at once, or, while `holdS` seconds are not stored, when they are.
   * @param {Int16Array} samples */
  async say(samples) {
    while (this.heldS > this.holdS && !this.#over) await sleep(50, this.line.closed.signal);
    for (let at = 0; at < samples.length; at += FRAME_SAMPLES) {
      const frame = samples.slice(at, at + FRAME_SAMPLES);
      this.#held.push({ first: this.#said, samples: frame });
      this.#said += frame.length;
      if (this.#started) this.line.send(frame);
    }
  }

  /** No more sound will come; words go on until everything is heard. */
  end() {
    this.#ended = true;
    if (this.#started) this.line.send({ type: "end" });
  }

  cancel() {
    this.#cancelled = true;
    if (this.#started) this.line.send({ type: "cancel" });
  }

  close() {
    this.#over = true;
    this.line.close();
  }

  async *[Symbol.asyncIterator]() {
    try {
      while (!this.#over) {
        const message = this.#known ? await this.line.receive() : null;
        if (message === null) {
          this.#started = false;
          if (!this.#known) await this.#connect();
          else if (!this.#over) await this.line.comeBack(() => this.#connect());
          continue;
        }
        const news = this.#read(message);
        if (news) yield news;
      }
    } finally {
      this.close();
    }
  }

  async #connect() {
    await this.line.dial({ session_id: this.#sessionId });
    this.line.send({
      type: "start", session_id: this.#sessionId, sample_rate: this.sampleRate,
      after_event: this.#lastEvent, ...this.extra,
    });
    const started = await this.line.receive();
    if (started === null) throw new ForebayError("unreachable", "the connection ended before start was answered");
    if (started.type === "error") throw ForebayError.of(started);
    this.#known = true;
    this.#has(started.samples);
    this.line.send({ type: "from", sample: this.#held[0]?.first ?? this.#said });
    for (const frame of this.#held) this.line.send(frame.samples);
    if (this.#cancelled) this.line.send({ type: "cancel" });
    else if (this.#ended) this.line.send({ type: "end" });
    this.#started = true;
  }

  /** @param {Record<string, any>} message @returns {import("./index.js").News | null} */
  #read(message) {
    switch (message.type) {
      case "ack":
        this.#has(message.samples);
        return null;
      case "partial":
      case "final":
        if (message.event <= this.#lastEvent) return null; // a repeat
        this.#lastEvent = message.event;
        if (message.type === "final") this.text += message.text;
        return /** @type {any} */ ({ language: "", ...message });
      case "queue_status":
        return { type: "queued", position: message.position, etaS: message.eta_s ?? null };
      case "ended":
        this.#over = true;
        return null;
      case "error":
        this.#over = true;
        throw ForebayError.of(message);
      default:
        return null;
    }
  }

  /** @param {number} samples how many the server has */
  #has(samples) {
    this.#stored = Math.max(this.#stored, samples);
    while (this.#held.length && this.#held[0].first + this.#held[0].samples.length <= this.#stored) {
      this.#held.shift();
    }
  }
}
