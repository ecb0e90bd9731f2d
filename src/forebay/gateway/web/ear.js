// One recording over /v1/listen. The connection may drop: what the server has not acknowledged
// is kept and sent again, and only news that was not received comes back.
const FATAL = new Set([4400, 4401, 4403, 4404, 4409]);
const HOLD_S = 300; // sound kept for a server that is away

export class Ear {
  socket = null;
  said = 0; // samples
  stored = 0;
  #id = crypto.randomUUID().replaceAll("-", "");
  #held = []; // {at, samples}
  #event = 0;
  #tries = 0;
  #known = false;
  #ended = false;
  #over = false;
  #live = false;

  constructor(rate, handlers) {
    this.rate = rate;
    this.on = handlers;
    this.#connect();
  }

  get active() { return !this.#over; }

  say(samples) {
    if (this.#over || this.#ended) return;
    this.#held.push({ at: this.said, samples });
    this.said += samples.length;
    if (this.#live) this.socket.send(samples);
    if ((this.said - this.stored) / this.rate > HOLD_S) this.#finish("gone");
  }

  end() {
    this.#ended = true;
    if (this.#live) this.#tell({ type: "end" });
    else if (!this.#known) this.#finish("stopped"); // never let in: there is nothing to wait for
  }

  #tell(message) { this.socket.send(JSON.stringify(message)); }

  #connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/v1/listen?session_id=${this.#id}`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => this.#tell({ type: "start", session_id: this.#id, sample_rate: this.rate, after_event: this.#event });
    socket.onmessage = (event) => {
      if (socket === this.socket) this.#receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (socket !== this.socket || this.#over) return;
      this.#live = false;
      this.#lost(event.code);
    };
  }

  // Before the first `started` a closed socket means: not let in. Browsers do not say why.
  async #lost(code) {
    if (FATAL.has(code)) return this.#finish("gone");
    let wait = Math.random() * Math.min(100 * 2 ** this.#tries++, 5000); // full jitter: no herd
    if (this.#known) {
      this.on.link("lost");
      if (this.#tries > 12) return this.#finish("gone");
    } else {
      const seconds = Math.max(1, Math.ceil(await this.#wait()));
      this.on.refused(seconds);
      wait = seconds * 1000 * (1 + Math.random() / 2);
    }
    setTimeout(() => { if (!this.#over) this.#connect(); }, wait);
  }

  async #wait() {
    try {
      const found = await (await fetch("/v1/capacity", { cache: "no-store" })).json();
      const pool = found.pools.find((p) => p.kind === "recognition");
      return Math.min(30, pool?.wait_now_s ?? 5);
    } catch { return 5; }
  }

  #receive(m) {
    switch (m.type) {
      case "started": this.#started(m); break;
      case "ack": this.#has(m.samples); break;
      case "partial":
      case "final":
        if (m.event <= this.#event) return;
        this.#event = m.event;
        this.on[m.type](m);
        break;
      case "queue_status": this.on.place(m); break;
      case "ended": this.#finish(m.state === "completed" ? "completed" : "stopped", m); break;
      case "error": this.#finish("failed", m); break;
    }
  }

  #started(m) {
    if (this.#known) this.on.resumed();
    this.#known = this.#live = true;
    this.#tries = 0;
    this.#has(m.samples);
    this.on.link("live");
    this.#tell({ type: "from", sample: this.#held[0]?.at ?? this.said });
    for (const piece of this.#held) this.socket.send(piece.samples);
    if (this.#ended) this.#tell({ type: "end" });
  }

  #has(samples) {
    this.stored = Math.max(this.stored, samples);
    while (this.#held.length > 0 && this.#held[0].at + this.#held[0].samples.length <= this.stored) this.#held.shift();
  }

  #finish(how, message = null) {
    if (this.#over) return;
    this.#over = true;
    this.on.link("idle");
    this.socket?.close();
    this.on.end(how, message);
  }
}
