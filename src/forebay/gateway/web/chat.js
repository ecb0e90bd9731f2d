// One spoken answer over /chat. The connection may drop: the session is asked for with a
// handle ("resumable"), and the next connection says what has been received.
const FATAL = new Set([4400, 4401, 4403, 4404, 4409]);

export class Chat {
  socket = null;
  #id = null;
  #request = null;
  #tries = 0;
  #over = true;
  #chars = 0;
  #nextUnit = 0;

  constructor(handlers) { this.on = handlers; }

  get active() { return !this.#over; }

  say(prompt, options) {
    this.#id = crypto.randomUUID().replaceAll("-", "");
    this.#request = { prompt, session_id: this.#id, audio_format: "pcm16_wav", channels: 1, notices: true, resumable: true, ...options };
    this.#over = false;
    this.#chars = this.#nextUnit = this.#tries = 0;
    this.#connect(false);
  }

  stop() {
    if (this.#over) return;
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: "cancel" }));
    else this.#finish("stopped");
  }

  #connect(again) {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/chat${again ? `?session_id=${this.#id}` : ""}`);
    this.socket = socket;
    socket.onopen = () => {
      const first = again
        ? { type: "resume", session_id: this.#id, chars_received: this.#chars, last_unit_index_received: this.#nextUnit - 1, notices: true }
        : this.#request;
      socket.send(JSON.stringify(first));
      this.on.link("live");
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket || typeof event.data !== "string") return;
      if (again) { again = false; this.#tries = 0; this.on.resumed(); }
      this.#receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (socket !== this.socket || this.#over) return;
      this.on.link("lost");
      if (FATAL.has(event.code) || this.#tries >= 8) return this.#finish("gone");
      const wait = Math.random() * Math.min(100 * 2 ** this.#tries++, 5000); // full jitter: no herd
      setTimeout(() => { if (!this.#over) this.#connect(true); }, wait);
    };
  }

  #receive(m) {
    switch (m.type) {
      case "llm_delta":
        this.#chars += [...m.delta].length;
        this.on.text(m.delta);
        break;
      case "audio_chunk":
        if (m.unit_index_start !== this.#nextUnit) return; // a piece already played
        this.#nextUnit = m.unit_index_end + 1;
        this.on.audio(m);
        break;
      case "queue_status": this.on.place(m); break;
      case "notice": this.on.notice(m); break;
      case "orchestrator_warning": this.on.warning(m); break;
      case "llm_done": this.on.written(m); if (!this.#request.audio_format || this.#request.text_only) this.#finish("completed"); break;
      case "orchestrator_cancelled": this.#finish("stopped"); break;
      case "tts_end": this.#finish(m.cancelled ? "stopped" : "completed"); break;
      case "orchestrator_error":
      case "error": this.#finish("failed", m); break;
    }
  }

  #finish(how, message = null) {
    if (this.#over) return;
    this.#over = true;
    this.on.link("idle");
    this.socket?.close();
    this.on.end(how, message);
  }
}
