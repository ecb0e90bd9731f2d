// What every page of the console shares: pools and their state, language, theme.
import { apply, language, setLanguage, t } from "./words.js";

// The views, in the order of the links; each is the word view<Name> and the page it is.
const VIEWS = { talk: "/", listen: "/static/listen.html", photos: "/static/photos.html", captions: "/captions", notebook: "/notebook", pools: "/pools" };
const $ = (id) => document.getElementById(id);
const THEMES = ["auto", "light", "dark"];
const chosen = () => localStorage.getItem("forebay.theme") ?? "auto";

// kinds: whose pools this page needs; onPools(list, ready) after each look, words() after the
// language changed.
export function frame({ kinds, onPools, words }) {
  links();
  const again = () => {
    apply();
    $("language").textContent = language() === "en" ? "中文" : "English";
    theme(chosen());
    words();
  };
  $("language").onclick = () => { setLanguage(language() === "en" ? "zh" : "en"); again(); };
  $("theme").onclick = () => theme(THEMES[(THEMES.indexOf(chosen()) + 1) % 3]);
  again();
  look(kinds, onPools);
}

function theme(next) {
  localStorage.setItem("forebay.theme", next);
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  $("theme").textContent = { auto: "◐", light: "○", dark: "●" }[next];
  $("theme").setAttribute("aria-label", t("themes")[next]);
  $("theme").title = t("themes")[next];
}

async function look(kinds, onPools) {
  let delay = 5000;
  try {
    const answer = await fetch("/api/status", { cache: "no-store" });
    if (answer.status === 401) return signIn();
    const found = await answer.json();
    if (found.signed_in) offerOut();
    if (found.views) offer(found.views);
    const list = (found.pools ?? []).filter((pool) => kinds.includes(pool.kind));
    const ready = list.length > 0 && list.every((pool) => pool.ready > 0);
    $("pools").replaceChildren(...list.map(shown));
    onPools(list, ready);
    delay = ready ? 10000 : 700; // while loading, look often
  } catch { $("pools").replaceChildren(); }
  setTimeout(() => look(kinds, onPools), document.hidden ? 30000 : delay);
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

function links() {
  const nav = document.querySelector(".views");
  nav.replaceChildren(...Object.entries(VIEWS).map(([view, path]) => {
    const link = document.createElement("a");
    link.href = path;
    link.dataset.t = `view${view[0].toUpperCase()}${view.slice(1)}`;
    if (view === nav.dataset.here) link.setAttribute("aria-current", "part" in nav.dataset ? "true" : "page");
    return link;
  }));
}

// A port of an original has some of the pages, and no link to the others.
function offer(views) {
  for (const link of document.querySelectorAll(".views a")) {
    link.hidden = !views.includes(link.dataset.t.slice(4).toLowerCase());
  }
}

function shown(pool) {
  const item = document.createElement("li");
  const dot = document.createElement("span");
  dot.className = "dot";
  const loading = Object.values(pool.stages ?? {}).find((s) => s.stage !== "ready");
  const model = pool.model || pool.name.split("/").slice(1).join("/");
  let text = `${t("kinds")[pool.kind] ?? pool.kind}: ${model}`;
  if (pool.ready === 0) text += ` (${loading ? t("loading")(t("stages")[loading.stage] ?? loading.stage, loading.total ? ` ${loading.done}/${loading.total}` : "") : t("none")})`;
  const name = document.createElement("span");
  name.textContent = text;
  item.className = pool.ready > 0 ? "ready" : loading && loading.stage !== "failed" ? "loading" : "failed";
  item.title = loading?.detail ?? "";
  item.append(dot, name);
  if (pool.synthetic) {
    const label = document.createElement("b");
    label.className = "synthetic";
    label.textContent = t("synthetic");
    item.append(label);
  }
  return item;
}
