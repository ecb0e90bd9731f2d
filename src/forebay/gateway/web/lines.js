// Captions as lines on a page. What people wrote goes in as text, never as markup; colours
// and fonts go in only where they are exactly that.
const COLOR = /^#[0-9a-f]{6}([0-9a-f]{2})?$/i;
const FONT = /^[\p{L}\p{N}_][\p{L}\p{N}_ -]{0,63}$/u;

export const color = (value) => (typeof value === "string" && COLOR.test(value) ? value : "");
export const font = (value) => (typeof value === "string" && FONT.test(value) ? value : "");

const RIGHT_TO_LEFT = /^[^\p{L}]*[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/u; // by its first letter

// A sender's colour. The sheet keeps its hue, and its lightness as far as it can be read on
// the viewer's own theme; over a sender's own background, or in OBS, it is exactly that.
function tint(node, value) {
  node.style.setProperty("--own", color(value));
  node.toggleAttribute("data-own", Boolean(color(value)));
}

const stack = (name, rest) => `"${name}", ${rest}`;

export class Lines {
  // root: where lines stand. options: { fade, timestamps, max, rest } with rest: the page's fonts
  constructor(root, options) {
    this.root = root;
    this.options = options;
    this.previews = new Map(); // user name: line
    this.count = 0;
  }

  caption(data) {
    const age = (Date.now() - data.created_at) / 1000;
    const fade = this.options.fade;
    this.count += 1;
    const line = this.previews.get(data.user_name) ?? this.line();
    this.previews.delete(data.user_name);
    line.classList.remove("preview");
    this.fill(line, data);
    line.dataset.offset = data.id;
    if (fade > 0 && age > fade + 5) { line.remove(); return; } // from long before this page
    this.root.append(line);
    for (const open of this.previews.values()) this.root.append(open); // what is being said stays last
    if (fade > 0) setTimeout(() => this.fade(line), fade * 1000);
    this.trim();
  }

  preview(data) {
    let line = this.previews.get(data.user_name);
    if (!line) {
      line = this.line();
      line.classList.add("preview");
      this.previews.set(data.user_name, line);
      this.root.append(line);
    }
    this.fill(line, data);
    clearTimeout(line.forget);
    line.forget = setTimeout(() => this.unsay(data.user_name, line), 15000); // its final never came
    this.trim();
  }

  unsay(user, line) {
    if (this.previews.get(user) !== line) return;
    this.previews.delete(user);
    line.remove();
  }

  line() {
    const line = document.createElement("p");
    line.className = "line";
    for (const part of ["stamp", "who", "text"]) {
      const span = document.createElement("span");
      span.className = part;
      if (part !== "stamp") span.dir = "auto";
      line.append(span);
    }
    return line;
  }

  fill(line, data) {
    clearTimeout(line.forget);
    const [stamp, who, text] = line.children;
    stamp.textContent = this.options.timestamps ? String(data.timestamp ?? "") : "";
    stamp.hidden = !stamp.textContent;
    who.textContent = String(data.user_name ?? "");
    text.textContent = String(data.text ?? "");
    line.dir = RIGHT_TO_LEFT.test(text.textContent) ? "rtl" : "ltr"; // name and time on its side
    tint(who, data.user_color);
    tint(text, data.text_color);
    line.style.backgroundColor = color(data.background_color);
    line.toggleAttribute("data-ground", Boolean(line.style.backgroundColor));
    const family = font(data.font_family);
    text.style.fontFamily = family ? stack(family, this.options.rest) : "";
  }

  fade(line) {
    line.classList.add("faded");
    setTimeout(() => line.remove(), 600);
  }

  trim() {
    while (this.root.children.length > this.options.max) {
      const oldest = this.root.firstElementChild;
      for (const [user, line] of this.previews) if (line === oldest) this.previews.delete(user);
      oldest.remove();
    }
  }

  clear() {
    this.previews.clear();
    this.root.replaceChildren();
  }
}
