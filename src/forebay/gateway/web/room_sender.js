// Captions into a room over a network that may be bad: each final once and in order, what waits
// kept in this browser until it is sent. The rules are those of the Python CaptionPublisher.
const BATCH = 64; // the server holds so many behind a hole: more would come out of order
const KEPT = 1000;
const ATTEMPT_MS = 2000;
const OFFLINE_MS = 1500;
const BACKOFF_MS = [100, 5000];

export class RoomSender {
  // on: { state(word, reason), counters(counts), sent(seq) }
  constructor({ server, room, passphrase, user, maxWorkers = 3, on }) {
    Object.assign(this, { server, room, passphrase, user, maxWorkers, on });
    this.url = /server\.php/.test(server) ? `${server.split("?")[0]}?action=send` : `${server.replace(/\/$/, "")}/api/send`;
    this.key = `forebay.outbox ${server} ${room}`;
    const kept = this.#load();
    this.client = kept.client;
    this.next = kept.next;
    this.settled = kept.settled;
    this.waiting = kept.waiting;
    this.open = null; // the newest preview
    this.flying = 0;
    this.failures = 0;
    this.forebay = null;
    this.state = "idle";
    this.stopped = false;
    this.done = new Set();
    this.counts = { sent: 0, queued: this.waiting.length, retried: 0, dropped: 0, errors: 0 };
    this.#settle();
    this.#probe();
  }

  send(text) {
    const message = { seq: this.next++, user_name: this.user, text, timestamp: new Date().toTimeString().slice(0, 8) };
    this.waiting.push(message);
    this.counts.queued += 1;
    this.open = null;
    if (this.counts.queued > KEPT) this.#drop(this.waiting.findIndex((m) => !m.skip));
    this.#keep();
    this.#go();
    return message.seq;
  }

  preview(text) {
    this.open = { user_name: this.user, text, is_preview: true, at: performance.now() };
    this.#go();
  }

  stop() { this.stopped = true; clearTimeout(this.timer); clearTimeout(this.late); }

  #load() {
    const fresh = { client: crypto.randomUUID().replaceAll("-", ""), next: 1, settled: 0, waiting: [] };
    try { return { ...fresh, ...JSON.parse(localStorage.getItem(this.key)) }; } catch { return fresh; }
  }

  #keep() {
    const { client, next, settled } = this;
    const waiting = [...(this.inFlight ?? new Map()).values()].flat().concat(this.waiting).sort((a, b) => a.seq - b.seq);
    try { localStorage.setItem(this.key, JSON.stringify({ client, next, settled, waiting })); } catch { /* full: kept in memory */ }
    this.on.counters({ ...this.counts });
  }

  #drop(at) {
    if (at < 0) return;
    this.waiting[at] = { seq: this.waiting[at].seq, skip: true };
    this.counts.dropped += 1;
    this.counts.queued -= 1;
  }

  #settle() {
    const left = new Set(this.waiting.map((m) => m.seq));
    for (const list of this.inFlight?.values() ?? []) for (const m of list) left.add(m.seq);
    while (this.settled + 1 < this.next && !left.has(this.settled + 1)) this.settled += 1;
  }

  // Whether the server knows our fields: its refusal of an empty list has a code.
  async #probe() {
    try {
      const answer = await this.#post({ messages: [] });
      if (answer.status < 500) this.forebay = "code" in (await answer.json().catch(() => ({})));
      this.#tell("ok");
    } catch (error) { this.#tell("offline", String(error.name)); this.timer = setTimeout(() => { if (!this.stopped) this.#probe(); }, ATTEMPT_MS); return; }
    this.#go();
  }

  #post(body) {
    return fetch(this.url, {
      method: "POST", headers: { "Content-Type": "application/json" }, signal: AbortSignal.timeout(ATTEMPT_MS),
      body: JSON.stringify({ room: this.room, passphrase: this.passphrase, ...body }),
    });
  }

  #go() {
    const workers = this.failures || this.forebay !== true ? 1 : this.maxWorkers;
    while (!this.stopped && !this.resting && this.forebay !== null && this.flying < workers) {
      const messages = [];
      const most = this.forebay ? BATCH : 1;
      while (this.waiting.length && messages.length < most && this.waiting[0].seq <= this.settled + BATCH) messages.push(this.waiting.shift());
      const preview = !this.waiting.length && this.open && performance.now() - this.open.at < 1000 && (this.forebay || !messages.length) ? this.open : null;
      if (preview) this.open = null;
      if (!messages.length && !preview) return;
      this.#fly(messages, preview);
    }
  }

  async #fly(messages, preview) {
    const number = (this.number = (this.number ?? 0) + 1);
    (this.inFlight ??= new Map()).set(number, messages);
    this.flying += 1;
    this.late ??= setTimeout(() => this.#tell("offline", ""), OFFLINE_MS);
    let wait = null;
    let reason = "";
    try {
      const answer = await this.#post(this.#body(messages, preview));
      const said = await answer.json().catch(() => ({}));
      clearTimeout(this.late);
      this.late = null;
      if (answer.status === 401 || answer.status === 403) { this.stopped = true; reason = String(said.error ?? answer.status); }
      else if (answer.status >= 500 || answer.status === 429) { wait = 1000 * (said.retry_after_s ?? 1); reason = String(said.error ?? answer.status); }
      else this.#answered(messages, answer.status, said);
    } catch (error) { wait = 0; reason = error.name === "TimeoutError" ? "no answer in time" : "the server cannot be reached"; }
    this.flying -= 1;
    this.inFlight.delete(number);
    if (this.stopped && reason) { this.#back(messages); this.#tell("refused", reason); }
    else if (wait !== null) this.#failed(messages, wait, reason);
    else { this.failures = 0; this.#tell("ok"); }
    this.#settle();
    this.#keep();
    this.#go();
  }

  #body(messages, preview) {
    const plain = ({ at, ...rest }) => rest; // `at` is ours
    if (this.forebay) return { client_id: this.client, settled: this.settled, messages: [...messages, ...(preview ? [plain(preview)] : [])] };
    const { seq, ...rest } = messages[0] ?? plain(preview);
    return rest;
  }

  #answered(messages, status, said) {
    messages.forEach((message, index) => {
      const result = this.forebay ? said.results?.[index] ?? { status: 503 } : { status };
      if (result.status < 300) {
        if (message.skip) return;
        this.counts.sent += 1;
        this.counts.queued -= 1;
        this.on.sent?.(message.seq);
      } else if (result.status === 429 || result.status === 503) {
        this.counts.retried += 1;
        this.#rest(1000);
        this.#back([message]);
      } else {
        this.counts.errors += 1;
        this.#back([message]);
        this.#drop(this.waiting.findIndex((m) => m.seq === message.seq && !m.skip));
        if (!this.forebay) this.waiting.shift();
      }
    });
  }

  #failed(messages, wait, reason) {
    this.counts.errors += 1;
    this.counts.retried += messages.length;
    this.#back(messages);
    const backoff = Math.min(BACKOFF_MS[1], BACKOFF_MS[0] * 2 ** this.failures++) * (0.5 + Math.random() / 2);
    this.#rest(Math.max(wait, backoff));
    if (this.state !== "offline") this.#tell("retrying", reason);
  }

  #rest(ms) {
    clearTimeout(this.timer);
    this.resting = true;
    this.timer = setTimeout(() => { this.resting = false; this.#go(); }, ms);
  }

  #back(messages) { this.waiting = [...messages, ...this.waiting].sort((a, b) => a.seq - b.seq); }

  #tell(state, reason = "") {
    this.state = state;
    this.on.state(state, reason);
  }
}
