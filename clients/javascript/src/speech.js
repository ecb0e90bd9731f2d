import { ForebayError } from "./errors.js";
import { Line, newId } from "./line.js";

/**
 * Text in, audio out, over a connection that may drop (`/tts`).
 *
 *   const voice = new SpeechSession("ws://127.0.0.1:8600/tts");
 *   voice.say("Hello there. "); voice.end();
 *   for await (const chunk of voice) play(chunk.audio, chunk.sampleRate);
 *
 * A unit is one Unicode code point; units are numbered from 0 over the whole utterance, also
 * where the server had to be given a new session for the rest of it.
 */
export class SpeechSession {
  /** @type {string[]} */ #units = [];
  #sessionId = newId();
  #seq = 0;
  #base = 0; // unit at which the server's session began
  #heard = 0; // units known to be sent on it
  #nextUnit = 0;
  #ended = false;
  #cancelled = false;
  #known = false; // whether the server has seen this session
  #ready = false; // whether this connection has been told what the server lacked
  #over = false;

  /** @param {string | string[]} urls @param {import("./index.js").SpeechOptions} [options] */
  constructor(urls, options = {}) {
    const { sampleRate = 24000, channels = 1, start = {} } = options;
    this.line = new Line(urls, options);
    this.sampleRate = sampleRate;
    this.channels = channels;
    this.extra = start;
    this.restarts = 0;
  }

  /** How often the connection was found again. */
  get resumed() {
    return this.line.resumed;
  }

  /** More text. Sent at once, or with the next connection. @param {string} text */
  say(text) {
    if (!text || this.#ended) return;
    const units = [...text];
    this.#units.push(...units);
    if (this.#ready && this.line.live) this.line.send(this.#delta(text, units.length));
  }

  /** No more text will come. */
  end() {
    this.#ended = true;
    if (this.#ready) this.line.send(this.#message("text_end"));
  }

  /** Stop speaking; iteration ends with the server's word. */
  cancel() {
    this.#cancelled = true;
    if (this.#ready) this.line.send(this.#message("cancel"));
  }

  /** Leave. The server keeps the session for its time to live. */
  close() {
    this.#over = true;
    this.line.close();
  }

  async *[Symbol.asyncIterator]() {
    try {
      if (!this.#known) await this.#first();
      while (!this.#over) {
        const message = await this.line.receive();
        if (message === null) {
          if (!this.#over) await this.line.comeBack(() => this.#connect());
          continue;
        }
        const chunk = this.#read(message);
        if (chunk) yield chunk;
      }
    } finally {
      this.close();
    }
  }

  async #first() {
    for (let left = this.line.urls.length; ; left -= 1) {
      try {
        return await this.#connect();
      } catch (error) {
        if (left <= 1 || !(error instanceof ForebayError) || error.code !== "unreachable") throw error;
        this.line.at = (this.line.at + 1) % this.line.urls.length;
      }
    }
  }

  async #connect() {
    this.#ready = false;
    await this.line.dial({ session_id: this.#sessionId });
    this.line.send({
      type: "start", session_id: this.#sessionId, audio_format: "pcm16_wav",
      sample_rate: this.sampleRate, channels: this.channels, ...this.extra,
    });
    if (this.#known) {
      // In the same breath: a server that hears nothing goes on where it believes us to be.
      this.line.send({
        type: "resume", session_id: this.#sessionId,
        last_unit_index_received: this.#nextUnit - this.#base - 1,
      });
    }
    const ack = await this.line.receive();
    if (ack === null) throw new ForebayError("unreachable", "the connection ended before start was answered");
    if (ack.type === "error") throw ForebayError.of(ack);
    this.#known = true;
    this.#resend(ack);
    this.#ready = true;
  }

  /** @param {Record<string, any>} ack */
  #resend(ack) {
    this.#heard = ack.units_received ?? this.#heard;
    this.#seq = Math.max(this.#seq, ack.last_seq_received ?? 0);
    const rest = this.#units.slice(this.#base + this.#heard);
    if (rest.length) this.line.send(this.#delta(rest.join(""), rest.length));
    if (this.#cancelled) this.line.send(this.#message("cancel"));
    else if (this.#ended) this.line.send(this.#message("text_end"));
  }

  /** @param {string} text @param {number} units */
  #delta(text, units) {
    this.#heard += units;
    return { ...this.#message("text_delta"), text };
  }

  /** @param {string} type */
  #message(type) {
    this.#seq += 1;
    return { type, session_id: this.#sessionId, seq: this.#seq };
  }

  /** @param {Record<string, any>} message @returns {import("./index.js").Chunk | null} */
  #read(message) {
    if (message.type === "audio_chunk") return this.#chunk(message);
    if (message.type === "tts_end") this.#over = true;
    if (message.type === "error") {
      const error = ForebayError.of(message);
      if (error.code !== "resume_not_available" && error.code !== "state_lost") {
        this.#over = true;
        throw error;
      }
      this.#restart();
    }
    return null;
  }

  /** The server cannot resume: a new session says the rest, from the first unit not heard. */
  #restart() {
    this.line.drop();
    this.#sessionId = newId();
    this.#base = this.#nextUnit;
    this.#heard = 0;
    this.#known = this.#ready = false;
    this.restarts += 1;
  }

  /** @param {Record<string, any>} message */
  #chunk(message) {
    const first = message.unit_index_start + this.#base;
    const units = [...message.units_text];
    if (first + units.length <= this.#nextUnit) return null; // a repeat
    this.#nextUnit = first + units.length;
    const binary = atob(message.audio_base64);
    const bytes = Uint8Array.from(binary, (char) => char.charCodeAt(0));
    return {
      unit: first, text: message.units_text, seq: message.chunk_seq,
      audio: new Int16Array(bytes.buffer), // s16le: the order of every browser's machine
      sampleRate: message.sample_rate, channels: message.channels,
    };
  }
}
