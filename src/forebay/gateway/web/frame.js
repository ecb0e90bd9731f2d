// What every page of the console shares: its header, pools and their state, language, theme,
// what is told to screen readers, and what is said when the gateway or an engine is missing.
import { apply, language, setLanguage, t } from "./words.js";

// The views, in the order of the links; each is the word view<Name> and the page it is.
const VIEWS = { talk: "/", listen: "/static/listen.html", photos: "/static/photos.html", captions: "/captions", notebook: "/notebook", pools: "/pools" };
const $ = (id) => document.getElementById(id);
const THEMES = ["auto", "light", "dark"];
const chosen = () => localStorage.getItem("forebay.theme") ?? "auto";

const LOST_MS = 2000;
const LOADING_MS = 700;
const absent = new Set(); // kinds that were missing at the last look

export const phone = () => matchMedia("(max-width: 52rem)").matches;

// kinds: whose pools this page needs; onPools(list, ready, all) after each look; words() after
// the language changed; everyMs() between looks when all is ready.
export function frame({ kinds, onPools, words, everyMs = () => 10000 }) {
  head(kinds);
  for (const side of document.querySelectorAll("details.side")) side.open = !phone() || "first" in side.dataset;
  const again = () => {
    apply();
    Object.assign($("language"), language() === "en" ? { textContent: "中文", lang: "zh-CN" } : { textContent: "English", lang: "en" });
    theme(chosen());
    words();
  };
  $("language").onclick = () => { setLanguage(language() === "en" ? "zh" : "en"); again(); };
  $("theme").onclick = () => theme(THEMES[(THEMES.indexOf(chosen()) + 1) % 3]);
  again();
  look(kinds, onPools, everyMs);
}

function head(kinds) {
  const main = document.querySelector("main");
  Object.assign(main, { id: "main", tabIndex: -1 });
  const skip = made("a", { className: "skip", href: "#main" });
  skip.dataset.t = "skip";
  skip.onclick = (event) => { event.preventDefault(); main.focus(); };
  const bar = document.querySelector(".bar");
  const nav = made("nav", { className: "views" });
  nav.append(...links(bar.dataset.here, "part" in bar.dataset));
  const pools = made("ul", { id: "pools", className: "pools", hidden: !kinds.length });
  pools.setAttribute("aria-live", "polite");
  bar.append(
    made("a", { className: "brand", href: "/" }, made("img", { src: "/static/mark.svg", alt: "", width: 26, height: 26 }), made("span", {}, "Forebay")),
    nav, pools,
    made("div", { className: "tools" }, made("button", { type: "button", id: "language", className: "quiet" }), made("button", { type: "button", id: "theme", className: "quiet" })),
  );
  const banner = made("p", { id: "banner", className: "banner", hidden: true });
  banner.setAttribute("role", "status");
  const said = made("p", { id: "said", className: "visually-hidden" });
  said.setAttribute("role", "status");
  document.body.prepend(skip);
  bar.after(banner);
  document.body.append(said);
}

// For screen readers only, where what the eye sees changes too often to be read out.
export function announce(text) { $("said").textContent = text; }

// One of two buttons gives way to the other, and the focus goes along.
export function swap(from, to) {
  const held = document.activeElement === from;
  from.hidden = true;
  to.hidden = false;
  if (held) to.focus();
}

// Copies, and says so on the button. Without a clipboard (plain http from afar) the browser asks.
export async function copy(button, text, label) {
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  if (!done) return void prompt(t(label), text);
  button.textContent = t("copied");
  announce(t("copied"));
  setTimeout(() => { button.textContent = t(label); }, 1200);
}

// Files dropped anywhere on the page; `area` shows where they go.
export function drops(area, take) {
  const over = (yes) => area.classList.toggle("over", yes);
  document.body.ondragover = (event) => { event.preventDefault(); over(true); };
  document.body.ondragleave = () => over(false);
  document.body.ondrop = (event) => { event.preventDefault(); over(false); take(event.dataTransfer.files); };
}

function banner(text) {
  if ($("banner").textContent !== text) $("banner").textContent = text;
  $("banner").hidden = !text;
}

// A kind counts as missing at the second look: a gateway that has just begun knows of none.
function missing(kinds, list) {
  const gone = kinds.filter((kind) => !list.some((pool) => pool.kind === kind));
  const known = gone.filter((kind) => absent.has(kind));
  absent.clear();
  gone.forEach((kind) => absent.add(kind));
  banner(known.map((kind) => t("absent")[kind]).join(" "));
}

function theme(next) {
  localStorage.setItem("forebay.theme", next);
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  $("theme").textContent = { auto: "◐", light: "○", dark: "●" }[next];
  $("theme").setAttribute("aria-label", t("themes")[next]);
  $("theme").title = t("themes")[next];
}

async function look(kinds, onPools, everyMs) {
  let delay = LOST_MS;
  try {
    const answer = await fetch("/api/status", { cache: "no-store" });
    if (answer.status === 401) return signIn();
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const found = await answer.json();
    if (found.signed_in) offerOut();
    if (found.views) offer(found.views);
    const list = (found.pools ?? []).filter((pool) => kinds.includes(pool.kind));
    const ready = list.length > 0 && list.every((pool) => pool.ready > 0);
    const fresh = list.map(shown);
    if (fresh.map((item) => item.outerHTML).join() !== [...$("pools").children].map((item) => item.outerHTML).join()) $("pools").replaceChildren(...fresh);
    missing(kinds, list);
    onPools(list, ready, found);
    delay = ready || !kinds.length ? everyMs() : list.length ? LOADING_MS : LOST_MS; // while loading, look often
  } catch { if (kinds.length) banner(t("gatewayLost")); }
  setTimeout(() => look(kinds, onPools, everyMs), document.hidden ? 30000 : delay);
}

// Where a key is demanded: ask for one. The browser keeps it where no script can read it.
function signIn() {
  const box = made("dialog", { className: "door" });
  const key = made("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: false });
  const bad = made("p", { className: "bad" });
  bad.setAttribute("role", "alert");
  const form = made("form", {}, made("h2", {}, t("keyTitle")), made("label", {}, made("span", {}, t("keyHint")), key), bad, made("button", { className: "go" }, t("keyEnter")));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const headers = { authorization: `Bearer ${key.value.trim()}` };
    const answer = await fetch("/api/session", { method: "POST", headers }).catch(() => null);
    if (answer?.ok) return location.reload();
    bad.textContent = t(answer ? "keyWrong" : "keyLost");
    key.select();
  };
  box.oncancel = (event) => event.preventDefault();
  box.append(form);
  document.body.append(box);
  box.showModal();
}

function offerOut() {
  if ($("out")) return;
  const out = made("button", { type: "button", id: "out", className: "quiet" }, t("keyOut"));
  out.dataset.t = "keyOut";
  out.onclick = async () => { await fetch("/api/session", { method: "DELETE" }); location.reload(); };
  document.querySelector(".tools").append(out);
}

// An element with these properties and children.
export function made(tag, facts = {}, ...inside) {
  const node = Object.assign(document.createElement(tag), facts);
  node.append(...inside);
  return node;
}

function links(here, part) {
  return Object.entries(VIEWS).map(([view, path]) => {
    const link = made("a", { href: path });
    link.dataset.t = `view${view[0].toUpperCase()}${view.slice(1)}`;
    if (view === here) link.setAttribute("aria-current", part ? "true" : "page");
    return link;
  });
}

// A port of an original has some of the pages, and no link to the others.
function offer(views) {
  for (const link of document.querySelectorAll(".views a")) {
    link.hidden = !views.includes(link.dataset.t.slice(4).toLowerCase());
  }
}

export const kindOf = (pool) => t("kinds")[pool.kind] ?? pool.kind;

// The model's name, or for an engine without a model what it is.
export function modelOf(pool) {
  const model = pool.model || pool.name.split("/").slice(1).join("/");
  if (!pool.synthetic) return [model];
  const label = made("b", { className: "synthetic" }, t("synthetic"));
  return model === "synthetic" ? [label] : [model, " ", label];
}

// {state: ready, loading or failed; said: what to show when it is not ready}
export function stateOf(pool) {
  if (pool.ready > 0) return { state: "ready", said: "" };
  const loading = Object.values(pool.stages ?? {}).find((s) => s.stage !== "ready");
  if (!loading) return { state: "failed", said: t("none") };
  const said = t("loading")(t("stages")[loading.stage] ?? loading.stage, loading.total ? ` ${loading.done}/${loading.total}` : "");
  return { state: loading.stage === "failed" ? "failed" : "loading", said, detail: loading.detail };
}

function shown(pool) {
  const { state, said, detail = "" } = stateOf(pool);
  const name = made("span", {}, `${kindOf(pool)}: `, ...modelOf(pool), said && ` (${said})`);
  return made("li", { className: state, title: detail }, made("span", { className: "dot" }), name);
}
