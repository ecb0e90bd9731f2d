// One cell of the page: its code, its run, and its output from an event stream that resumes.
import { Output } from "./cell_output.js";
import { announce } from "./frame.js";
import { t } from "./words.js";

const STAGES = ["accept", "queue", "kernel", "dispatch", "first", "run", "flush", "write"];

function made(name, className, text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

export class CellView {
  // book: {base, changed(cell), removed(cell), next(cell)}
  constructor(book, id, code) {
    this.book = book;
    this.id = id;
    this.source = null;
    this.times = {};
    this.node = made("section", "cell");
    this.node.dataset.cell = id;
    this.count = made("span", "count", "[ ]");
    this.go = made("button", "go");
    this.away = made("button", "quiet", "×");
    this.code = document.createElement("textarea");
    this.code.value = code;
    this.code.spellcheck = false;
    this.code.autocapitalize = "off";
    this.out = made("div", "output");
    this.out.tabIndex = 0; // it scrolls
    this.foot = made("div", "foot");
    const side = made("div", "side");
    for (const button of [this.go, this.away]) button.type = "button";
    side.append(this.go, this.count, this.away);
    const row = made("div", "row");
    row.append(side, this.code);
    this.node.append(row, this.out, this.foot);
    this.output = new Output(this.out, (blob) => `${book.base()}/cells/${id}/large/${blob}`);
    this.go.onclick = () => this.run();
    this.away.onclick = () => this.remove();
    this.code.oninput = () => { this.fit(); book.changed(this); };
    this.code.onkeydown = (event) => this.key(event);
    this.words();
    this.fit();
    this.state("idle");
  }

  words() {
    this.go.textContent = t("runCell");
    this.away.title = t("deleteCell");
    this.away.setAttribute("aria-label", t("deleteCell"));
    this.code.setAttribute("aria-label", t("code"));
    this.code.placeholder = t("codeHint");
    this.stages();
  }

  fit() { this.code.rows = Math.min(30, Math.max(2, this.code.value.split("\n").length)); }

  state(state) {
    this.node.dataset.state = state;
    const busy = state === "queued" || state === "running";
    this.go.disabled = busy;
    if (busy) this.count.textContent = "[*]";
    this.book.changed(this);
  }

  get busy() { return ["queued", "running"].includes(this.node.dataset.state); }

  key(event) {
    if (event.key === "Enter" && event.shiftKey) {
      event.preventDefault();
      this.run();
      this.book.next(this);
    } else if (event.key === "Tab" && !event.shiftKey && this.code.selectionStart !== undefined) {
      event.preventDefault();
      this.code.setRangeText("    ", this.code.selectionStart, this.code.selectionEnd, "end");
      this.code.oninput();
    }
  }

  async run() {
    if (this.busy) return;
    this.close();
    this.output.reset();
    this.times = { asked: performance.now() };
    this.state("queued");
    try {
      const answer = await fetch(`${this.book.base()}/cells`, {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ cell: this.id, code: this.code.value }),
      });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error?.message ?? answer.status);
      this.times.told = performance.now();
      this.times.accept = Number(/accept;dur=([\d.]+)/.exec(answer.headers.get("server-timing") ?? "")?.[1] ?? 0);
      this.state(told.state);
      this.ran = true;
      this.book.changed();
      this.follow();
    } catch (error) {
      this.output.tell(`${t("notConnected")}${error.message}`);
      this.state("idle");
      this.count.textContent = "[!]";
    }
  }

  // Everything since the beginning, then live. The browser comes back by itself, with the
  // position it has. Resolves when the cell is over.
  follow() {
    this.close();
    return new Promise((resolve) => {
      this.done = resolve;
      const source = this.source = new EventSource(`${this.book.base()}/cells/${this.id}/events`);
      for (const type of ["job", "queued", "running", "display", "notice", "result", "ended"]) {
        source.addEventListener(type, (event) => this[type](JSON.parse(event.data)));
      }
      source.addEventListener("error", (event) => {
        if (event.data) this.output.tell(JSON.parse(event.data).message);
        if (event.data || source.readyState === EventSource.CLOSED) { this.close(); if (this.busy) this.state("idle"); }
      });
    });
  }

  close() {
    this.source?.close();
    this.source = null;
    this.done?.();
  }

  job(event) { if (event.state === "queued" || event.state === "running") this.state(event.state); }
  queued(event) { if (event.position > 0) this.foot.textContent = t("cellWaiting")(event.position); }

  running() {
    this.times.running ??= performance.now();
    this.foot.textContent = t("cellRunning");
    this.state("running");
  }

  display(event) {
    this.times.first ??= performance.now();
    this.output.display(event);
  }

  notice(event) { this.output.tell(event.message); }

  result(event) {
    this.times.result = performance.now();
    this.told = event.value;
  }

  ended(event) {
    this.times.ended = performance.now();
    this.close();
    if (event.state === "failed" || event.state === "expired") this.output.tell(`${t("cellFailed")}${event.message}`);
    if (event.state === "cancelled" || this.told?.status === "interrupted") this.output.tell(t("interrupted"));
    this.count.textContent = `[${this.told?.execution_count ?? "–"}]`;
    this.state(event.state === "completed" ? "done" : "ended");
    announce(`${t("cellOver")} ${this.count.textContent}: ${this.out.innerText.slice(-300)}`);
    this.stages();
  }

  // Where the time went. What only the server sees comes from it, the rest is seen here.
  stages() {
    const worker = this.told?.timing_ms;
    if (!worker || this.times.ended === undefined) return;
    const { told, running = told, first, result, ended, accept } = this.times;
    const seen = { kernel: worker.kernel, first: worker.first ?? 0, run: worker.run };
    if (told !== undefined) {
      seen.accept = accept;
      seen.queue = Math.max(0, running - told);
      seen.dispatch = Math.max(0, (first ?? result) - Math.max(told, running) - worker.kernel - seen.first);
      seen.flush = Math.max(0, result - (first ?? result) - (worker.run - seen.first));
      seen.write = Math.max(0, ended - result);
    }
    this.foot.replaceChildren(...STAGES.filter((s) => seen[s] !== undefined).map((s) => made("span", "", `${t("stages")[s]} ${seen[s].toFixed(1)} ms`)));
  }

  async remove() {
    this.close();
    this.node.remove();
    this.book.removed(this);
    await fetch(`${this.book.base()}/cells/${this.id}`, { method: "DELETE" }).catch(() => {});
  }
}
