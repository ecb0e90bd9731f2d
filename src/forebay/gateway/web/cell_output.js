// One cell's output: text with colours and progress lines, pictures, HTML that can do nothing.
// Everything becomes text nodes, images and sandboxed frames; nothing is ever parsed as markup here.
import { t } from "./words.js";

const KEPT = 2_000_000; // characters of one stream that stay in the page
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const ESCAPE = /\x1b(?:\[([0-9;:]*)([A-Za-z])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;

// `text` as nodes; `state` is the set of classes in force, and is changed by what is met.
export function ansi(text, state) {
  const nodes = document.createDocumentFragment();
  const put = (part) => {
    if (!part) return;
    if (!state.size) return nodes.append(part);
    const span = document.createElement("span");
    span.className = [...state].join(" ");
    span.textContent = part;
    nodes.append(span);
  };
  let at = 0;
  for (const found of text.matchAll(ESCAPE)) {
    put(text.slice(at, found.index));
    at = found.index + found[0].length;
    if (found[2] === "m") style(found[1].split(/[;:]/).map(Number), state);
  }
  put(text.slice(at));
  return nodes;
}

function style(codes, state) {
  for (let i = 0; i < codes.length; i++) {
    let code = codes[i];
    if (code === 38 || code === 48) {
      const colour = codes[i + 1] === 5 ? codes[i + 2] : -1;
      i += codes[i + 1] === 5 ? 2 : 4;
      if (code === 48 || colour < 0 || colour > 15) continue;
      code = 30 + (colour % 8);
    }
    if (code >= 90 && code <= 97) code -= 60;
    if (code === 0) state.clear();
    else if ([1, 3, 4].includes(code)) state.add(`a${code}`);
    else if (code === 22) state.delete("a1");
    else if ((code >= 30 && code <= 37) || code === 39) {
      for (const name of [...state]) if (/^a3[0-7]$/.test(name)) state.delete(name);
      if (code !== 39) state.add(`a${code}`);
    }
  }
}

// A stream: whole lines are written once, the last one again whenever it changes.
class Stream {
  constructor(name) {
    this.name = name;
    this.node = document.createElement("pre");
    this.node.className = name;
    this.open = document.createElement("span");
    this.node.append(this.open);
    this.line = "";
    this.waiting = "";
    this.state = new Set();
    this.kept = [];
    this.size = 0;
  }

  add(text, soon) {
    this.waiting += text;
    soon(this);
  }

  draw() {
    const lines = (this.line + this.waiting).replaceAll("\r\n", "\n").split("\n");
    this.waiting = "";
    this.line = rewritten(lines.pop());
    if (lines.length) {
      const part = document.createElement("span");
      const text = lines.map(rewritten).join("\n") + "\n";
      part.append(ansi(text.length > KEPT ? text.slice(-KEPT) : text, this.state));
      this.open.before(part);
      this.keep(part, text.length);
    }
    this.open.replaceChildren(ansi(this.line, new Set(this.state)));
  }

  keep(part, size) {
    this.kept.push([part, size]);
    this.size += size;
    while (this.size > KEPT && this.kept.length > 1) {
      const [old, less] = this.kept.shift();
      this.size -= less;
      old.remove();
      if (!this.cut) {
        this.cut = document.createElement("span");
        this.cut.className = "told";
        this.node.prepend(this.cut);
      }
      this.cut.textContent = `${t("earlier")}\n`;
    }
  }
}

function rewritten(line) {
  const kept = line.endsWith("\r") ? line.slice(0, -1) : line;
  const at = kept.lastIndexOf("\r");
  return at < 0 ? line : kept.slice(at + 1) + (kept === line ? "" : "\r");
}

export class Output {
  // large(mime, blob): where content that is too large for the stream is.
  constructor(node, large) {
    this.node = node;
    this.large = large;
    this.reset();
  }

  reset() {
    this.node.replaceChildren();
    this.stream = null;
    this.named = new Map();
    this.clearing = false;
    this.dirty = new Set();
  }

  soon = (stream) => {
    if (!this.dirty.size) requestAnimationFrame(() => this.flush());
    this.dirty.add(stream);
  };

  flush() {
    const down = this.node.scrollTop + this.node.clientHeight >= this.node.scrollHeight - 8;
    for (const stream of this.dirty) stream.draw();
    this.dirty.clear();
    if (down) this.node.scrollTop = this.node.scrollHeight;
  }

  display(event) {
    if (event.what === "clear") {
      if (event.data.wait) this.clearing = true;
      else this.reset();
      return;
    }
    if (event.what === "update") {
      for (const old of this.named.get(event.display_id) ?? []) old.replaceChildren(this.rich(event));
      return;
    }
    if (this.clearing) this.reset();
    if (event.what === "stream") return this.text(event.name, event.data["text/plain"] ?? "");
    this.stream = null;
    const box = document.createElement("div");
    if (event.what === "error") {
      const lines = (event.data.traceback ?? []).join("\n") || `${event.data.ename}: ${event.data.evalue}`;
      box.append(plain(lines, "error"));
    } else box.append(this.rich(event));
    this.node.append(box);
    if (event.display_id) this.named.set(event.display_id, [...(this.named.get(event.display_id) ?? []), box]);
  }

  text(name, text) {
    if (this.stream?.name !== name) {
      this.stream = new Stream(name);
      this.node.append(this.stream.node);
    }
    this.stream.add(text, this.soon);
  }

  tell(text) {
    this.stream = null;
    const line = document.createElement("div");
    line.className = "told";
    line.textContent = text;
    this.node.append(line);
  }

  rich(event) {
    const large = event.large ?? {};
    const data = event.data;
    const has = (mime) => mime in data || mime in large;
    if (has("text/html")) return this.html(data["text/html"], large["text/html"]);
    const picture = [...PICTURES, "image/svg+xml"].find(has);
    if (picture) {
      const image = document.createElement("img");
      image.alt = String(data["text/plain"] ?? "");
      if (picture in large) image.src = this.large(large[picture]);
      else if (picture === "image/svg+xml") image.src = `data:image/svg+xml,${encodeURIComponent(String(data[picture]))}`;
      else image.src = `data:${picture};base64,${String(data[picture]).replace(/\s/g, "")}`;
      return image;
    }
    if ("text/plain" in large) {
      const box = plain("…", "result");
      fetch(this.large(large["text/plain"])).then((r) => r.text()).then((text) => box.replaceChildren(ansi(text, new Set())), () => {});
      return box;
    }
    return plain(String(data["text/plain"] ?? Object.keys(data).join(", ")), "result");
  }

  html(text, large) {
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", ""); // no script, no forms, no origin
    frame.referrerPolicy = "no-referrer";
    if (large) fetch(this.large(large)).then((r) => r.text()).then((all) => { frame.srcdoc = all; }, () => {});
    else frame.srcdoc = String(text);
    return frame;
  }
}

function plain(text, name) {
  const node = document.createElement("pre");
  node.className = name;
  node.append(ansi(text, new Set()));
  return node;
}
