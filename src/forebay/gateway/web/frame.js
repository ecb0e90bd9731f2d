// What every page of the console shares: pools and their state, language, theme.
import { apply, language, setLanguage, t } from "./words.js";

const $ = (id) => document.getElementById(id);
const THEMES = ["auto", "light", "dark"];
const chosen = () => localStorage.getItem("forebay.theme") ?? "auto";

// kinds: whose pools this page needs; onPools(list, ready) after each look, words() after the
// language changed.
export function frame({ kinds, onPools, words }) {
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
    const found = await (await fetch("/api/status", { cache: "no-store" })).json();
    if (found.views) offer(found.views);
    const list = (found.pools ?? []).filter((pool) => kinds.includes(pool.kind));
    const ready = list.length > 0 && list.every((pool) => pool.ready > 0);
    $("pools").replaceChildren(...list.map(shown));
    onPools(list, ready);
    delay = ready ? 10000 : 700; // while loading, look often
  } catch { $("pools").replaceChildren(); }
  setTimeout(() => look(kinds, onPools), document.hidden ? 30000 : delay);
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
