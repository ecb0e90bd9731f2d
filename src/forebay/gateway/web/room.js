// One room for whoever runs it: what is said, who is there, and taking it away as a file.
import "./captions_words.js";
import { frame } from "./frame.js";
import { Lines } from "./lines.js";
import { RoomReader } from "./rooms.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const LOOK_MS = 2000;
const asked = new URLSearchParams(location.search);
const room = (asked.get("room") ?? "").trim();
const lines = new Lines($("lines"), { fade: 0, timestamps: true, max: 1000, rest: "inherit" });
let state = "connecting";
let facts = null;

function follow(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  $("none").hidden = $("lines").childElementCount > 0;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function words() {
  document.title = room ? `${room} · ${t("roomTitle")}` : `Forebay: ${t("roomTitle")}`;
  $("link").textContent = room ? t("links")[state] : "";
  if (facts) show(facts);
}

function told(word) {
  state = word;
  $("link").dataset.state = word;
  words();
}

function show(found) {
  facts = found;
  for (const name of ["present", "messages", "kept", "writers", "held"]) $(name).textContent = found[name];
  const ago = Math.max(0, Math.round((Date.now() - found.active_at) / 1000));
  $("active").textContent = found.messages ? t("roomAgo")(ago) : t("roomNever");
  $("persist").textContent = found.persist ? t("roomYes") : t("roomNo");
  const who = found.members.map((member) => {
    const item = document.createElement("li");
    const [name, role] = [document.createElement("span"), document.createElement("span")];
    name.textContent = member.user || t("roomAnon");
    name.dir = "auto";
    role.textContent = t("roomRoles")[member.role] ?? member.role;
    item.append(name, role);
    return item;
  });
  if (!who.length) {
    const item = document.createElement("li");
    item.textContent = t("roomNobody");
    who.push(item);
  }
  $("who").replaceChildren(...who);
}

const rest = () => {
  const query = new URLSearchParams();
  for (const name of ["passphrase", "view"]) if (asked.has(name)) query.set(name, asked.get(name));
  return query;
};
const api = (path, query = rest()) => `/api/rooms/${encodeURIComponent(room)}${path}?${query}`;

async function look() {
  try {
    const answer = await fetch(api(""), { cache: "no-store" });
    if (answer.ok) show(await answer.json());
  } catch { /* the link's state says so already */ }
  setTimeout(look, document.hidden ? 10 * LOOK_MS : LOOK_MS);
}

async function make(event) {
  event.preventDefault();
  const body = JSON.stringify({ passphrase: $("passphrase").value });
  const answer = await fetch(api("/ticket"), { method: "POST", headers: { "content-type": "application/json" }, body });
  if (!answer.ok) { $("made").textContent = t("roomWrong"); return; }
  const found = await answer.json();
  $("made").textContent = `${location.origin}${found.display} (${t("roomMade")(Math.round(found.expires_s / 3600))})`;
}

frame({ kinds: [], onPools: () => {}, words });
$("which").hidden = room !== "";
$("none").hidden = $("about").hidden = room === "";
$("which").onsubmit = (event) => {
  event.preventDefault();
  location.search = `?room=${encodeURIComponent($("name").value.trim())}`;
};
if (room) {
  $("shown").textContent = room;
  for (const form of ["srt", "vtt", "txt"]) {
    const query = rest();
    query.set("form", form);
    $(form).href = api("/export", query);
  }
  $("make").onsubmit = make;
  window.forebay = {
    lines,
    reader: new RoomReader(room, {
      passphrase: asked.get("passphrase"),
      view: asked.get("view"),
      role: "console",
      on: {
        caption: (data) => follow(() => lines.caption(data)),
        preview: (data) => follow(() => lines.preview(data)),
        state: told,
        reset: () => lines.clear(),
      },
    }),
  };
  look();
}
