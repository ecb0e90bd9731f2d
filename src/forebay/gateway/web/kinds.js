// The five kinds of work at a glance: what runs, whether it is ready, how busy it is.
import { kindOf, made, modelOf, stateOf } from "./frame.js";
import { t } from "./words.js";

// In the order of the links above; where a kind has a page of its own, the tile leads there.
const KINDS = { text: "", speech: "", recognition: "listen", image: "photos", kernel: "notebook" };
const PAGES = { listen: "/static/listen.html", photos: "/static/photos.html", notebook: "/notebook" };
const PIPS = 12; // slots drawn one by one; more become one bar
const tiles = new Map(); // kind: { node, facts } of what stands there

// views: the pages of this port. A tile that has not changed is left alone.
export function kinds(list, pools, views = []) {
  if (list.childElementCount !== Object.keys(KINDS).length) {
    tiles.clear();
    list.replaceChildren();
  }
  for (const [kind, view] of Object.entries(KINDS)) {
    const pool = pools.find((p) => p.kind === kind && p.ready > 0) ?? pools.find((p) => p.kind === kind);
    const fresh = tile(kind, pool, views.includes(view) ? PAGES[view] : "");
    const old = tiles.get(kind);
    if (old?.outerHTML === fresh.outerHTML) continue;
    if (!old) list.append(fresh);
    else if (old.contains(document.activeElement)) { old.replaceWith(fresh); fresh.querySelector("a")?.focus(); }
    else old.replaceWith(fresh);
    tiles.set(kind, fresh);
  }
}

function tile(kind, pool, href) {
  const { state, said, detail = "" } = pool ? stateOf(pool) : { state: "off", said: t("hereOff") };
  const item = made("li", { className: state, title: detail });
  item.dataset.kind = kind;
  const name = made(href ? "a" : "span", { className: "kind" }, made("span", { className: "dot" }), kindOf({ kind }));
  if (href) name.href = href;
  item.append(name, made("span", { className: "model" }, ...(pool ? modelOf(pool) : ["–"])));
  if (state === "ready") {
    const busy = Math.min(pool.running, pool.slots);
    item.append(pips(busy, pool.slots));
    item.append(made("span", { className: "load" }, [busy ? t("hereBusy")(busy, pool.slots) : t("hereReady"), pool.queued ? t("hereQueue")(pool.queued) : ""].filter(Boolean).join(", ")));
  } else item.append(made("span", { className: "pips" }), made("span", { className: "load" }, said));
  return item;
}

function pips(busy, slots) {
  const many = slots > PIPS;
  const box = made("span", { className: "pips" });
  box.setAttribute("aria-hidden", "true"); // the words beside it say the same
  for (let i = 0; i < (many ? PIPS : slots); i++) box.append(made("i", { className: i < Math.ceil(many ? PIPS * busy / slots : busy) ? "busy" : "" }));
  return box;
}
