// One recording over /v1/listen. The connection may drop: what the server has not acknowledged
// is kept and sent again, and only news that was not received comes back. Where the session
// itself is lost, a new one goes on with what was not heard yet.
import { room } from "./room_left.js";

const FATAL = new Set([4400, 4401, 4403, 4404, 4409]);
const HOLD_S = 300; // sound kept for a server that is away
const TTL_S = 120; // how long a session waits for its client, until `started` says so
const BACKOFF_MS = [100, 5000]; // between attempts to come back: the first, the longest
const ATTEMPT_MS = 15000; // a network that swallows packets closes nothing
const newId = () => crypto.randomUUID().replaceAll("-", "");

// handlers: partial(m), final(m), place(m), link("live" | "lost" | "idle"), resumed(),
// refused(seconds, why: full | away | unopened), renewed(seconds that may be missing),
// end({how: completed | stopped | gone | over | failed, message, unheard: seconds}).
export class Ear {
  socket = null;
  said = 0; // samples
  stored = 0;
  #id = newId();
  #base = 0; // the sample with which the present session begins
  #heard = 0; // samples up to the last word
  #held = []; // {at, samples}
  #event = 0;
  #tries = 0;
  #ttl = TTL_S;
  #lostAt = null;
  #late = 0; // timer of an attempt
  #next = 0; // timer of the next one
  #missing = null; // seconds, while a new session takes over
  #returned = false; // the session was over when we came back to it
  #known = false;
  #ended = false;
  #over = false;
  #live = false;

  constructor(rate, handlers) {
    this.rate = rate;
    this.on = handlers;
    addEventListener("online", this.#online);
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

  // Said again while the connection is lost, it gives up what waits for it.
  end() {
    const again = this.#ended;
    this.#ended = true;
    if (this.#live) this.#tell({ type: "end" });
    else if (!this.#known && this.#missing === null) this.#finish("stopped"); // never let in: there is nothing to wait for
    else if (again) this.#finish("gone");
  }

  #tell(message) { this.socket.send(JSON.stringify(message)); }

  // ------------------------------------------------------------------ the connection

  #connect() {
    clearTimeout(this.#next);
    this.#next = 0;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/v1/listen?session_id=${this.#id}`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.#late = setTimeout(() => { this.#leave(); this.#lost(0); }, ATTEMPT_MS);
    socket.onopen = () => {
      if (socket === this.socket) this.#tell({ type: "start", session_id: this.#id, sample_rate: this.rate, after_event: this.#event });
    };
    socket.onmessage = (event) => {
      if (socket === this.socket && !this.#over) this.#receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (socket !== this.socket || this.#over) return;
      this.#leave();
      this.#lost(event.code);
    };
  }

  #leave() {
    clearTimeout(this.#late);
    this.#live = false;
    const socket = this.socket;
    this.socket = null; // its last news are nobody's
    socket?.close();
  }

  #lost(code) {
    if (FATAL.has(code)) this.#finish("gone");
    else if (this.#known) this.#comeBack();
    else this.#knock();
  }

  // For as long as the session waits for us. Full jitter: no herd.
  #comeBack() {
    this.on.link("lost");
    this.#lostAt ??= performance.now();
    const left = this.#ttl * 1000 - (performance.now() - this.#lostAt);
    if (left <= 0) return this.#finish("gone");
    const [first, longest] = BACKOFF_MS;
    this.#connectIn(Math.min(left, Math.random() * Math.min(first * 2 ** this.#tries++, longest)));
  }

  // Not let in, and browsers do not say why: what else the server answers tells.
  async #knock() {
    const found = await room();
    if (this.#over) return;
    const why = !found ? "away" : found.full ? "full" : "unopened";
    const seconds = Math.max(1, found ? Math.min(30, found.wait_s ?? 5) : Math.min(10, 2 ** this.#tries++));
    const wait = seconds * (1 + Math.random() / 2);
    this.on.refused(wait, why);
    this.#connectIn(wait * 1000);
  }

  #connectIn(ms) { this.#next = setTimeout(() => this.#connect(), ms); }

  #online = () => { if (this.#next) this.#connect(); };

  // ------------------------------------------------------------------------ its news

  #receive(m) {
    switch (m.type) {
      case "started": this.#started(m); break;
      case "ack": this.#has(this.#base + m.samples); break;
      case "partial":
      case "final":
        if (m.event <= this.#event) return;
        this.#event = m.event;
        this.#words({ ...m, start: m.start + this.#base / this.rate, end: m.end + this.#base / this.rate });
        break;
      case "queue_status": this.on.place(m); break;
      case "ended":
        if (m.state === "completed" && (this.said === this.stored || (this.#ended && !this.#returned))) this.#finish("completed", m);
        else this.#cut("over", m);
        break;
      case "error": this.#cut("failed", m); break;
    }
  }

  #words(m) {
    this.#heard = Math.max(this.#heard, Math.round(m.end * this.rate));
    this.on[m.type](m);
  }

  #started(m) {
    // A server that lost the session may take its name for a new one: nothing was resumed then.
    if (this.#known && (!m.resumed || this.#base + m.samples < this.stored)) {
      this.#tell({ type: "cancel" }); // or it would keep a place for two minutes
      return this.#renew();
    }
    clearTimeout(this.#late);
    if (this.#known) this.on.resumed();
    this.#known = this.#live = true;
    this.#returned = m.finished === true;
    this.#ttl = m.ttl_s ?? TTL_S;
    this.#tries = 0;
    this.#lostAt = null;
    this.#has(this.#base + m.samples);
    this.on.link("live");
    if (this.#missing !== null) this.on.renewed(this.#missing);
    this.#missing = null;
    if (this.#returned) return; // only its news are to come
    this.#tell({ type: "from", sample: (this.#held[0]?.at ?? this.said) - this.#base });
    for (const piece of this.#held) this.socket.send(piece.samples);
    if (this.#ended) this.#tell({ type: "end" });
  }

  #has(samples) {
    this.stored = Math.max(this.stored, samples);
    while (this.#held.length > 0 && this.#held[0].at + this.#held[0].samples.length <= this.stored) this.#held.shift();
  }

  // Ended by the server, and nobody here asked for it. A session that is gone is followed by a
  // new one; one that failed before our eyes is not, for that one would fail as well.
  #cut(how, m) {
    const gone = m.code === "resume_not_available";
    const more = !this.#ended || this.said > Math.max(this.stored, this.#heard);
    if (this.#known && more && (gone || this.#returned)) this.#renew();
    else this.#finish(gone ? "over" : how, m);
  }

  #renew() {
    const missing = Math.max(0, this.stored - this.#heard) / this.rate;
    this.#leave();
    this.#has(this.#heard); // what has its words is not said twice
    this.#missing = (this.#missing ?? 0) + missing;
    this.#base = this.stored = this.#held[0]?.at ?? this.said;
    this.#id = newId();
    this.#event = this.#tries = 0;
    this.#known = this.#returned = false;
    this.#lostAt = null;
    this.on.link("lost");
    this.#connect();
  }

  #finish(how, message = null) {
    if (this.#over) return;
    this.#over = true;
    removeEventListener("online", this.#online);
    clearTimeout(this.#next);
    this.#leave();
    this.on.link("idle");
    this.on.end({ how, message, unheard: Math.max(0, this.said - this.stored) / this.rate });
  }
}
