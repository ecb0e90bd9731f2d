// A room on a screen, a phone or in OBS. Everything is set by the address:
// room, passphrase, view, fade, timestamps, maxlines, fontsize, fontsource, websafefont,
// googlefont, customfont, transparent, indicator, theme, lang.
import { Lines, font } from "./lines.js";
import { RoomReader } from "./rooms.js";

const WORDS = {
  en: { connecting: "connecting", live: "connected", lost: "connection lost, coming back", refused: "this room needs its passphrase or a link for viewing", none: "no room in the address", ask: "Add ?room=NAME to the address. A room is made at /captions.", still: (room) => `Waiting for the first words in ${room}`, title: "Captions" },
  zh: { connecting: "正在连接", live: "已连接", lost: "连接断开，正在恢复", refused: "查看此房间需要口令或查看链接", none: "地址中没有房间", ask: "请在地址后加上 ?room=名称。房间在 /captions 建立。", still: (room) => `等待“${room}”里的第一句话`, title: "字幕" },
};

const asked = new URLSearchParams(location.search);
const root = document.documentElement;
const lang = ["en", "zh"].includes(asked.get("lang")) ? asked.get("lang") : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const yes = (name, otherwise) => (asked.has(name) ? !["0", "false", "no", "off"].includes(asked.get(name).toLowerCase()) : otherwise);

function number(name, otherwise, low, high) {
  const text = asked.get(name);
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
}

function family() {
  const source = asked.get("fontsource") ?? "websafe";
  const name = font(asked.get(`${source}font`) ?? { websafe: "Arial", google: "Roboto" }[source]);
  if (name && source === "google" && root.dataset.fonts === "google") {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = `https://fonts.googleapis.com/css2?family=${encodeURIComponent(name)}&display=swap`;
    document.head.append(sheet);
  }
  return name ? `"${name}", ${REST}` : REST;
}

const REST = 'system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "Noto Naskh Arabic", sans-serif';
const $lines = document.getElementById("lines");
const $link = document.getElementById("link");

root.lang = lang === "zh" ? "zh-CN" : "en";
if (yes("transparent", false) || yes("obs", false)) root.dataset.transparent = "";
if (["light", "dark"].includes(asked.get("theme"))) root.dataset.theme = asked.get("theme");
if (!yes("indicator", true)) $link.dataset.off = "";
$lines.style.fontSize = `${number("fontsize", 16, 6, 400)}px`;
$lines.style.fontFamily = family();

const lines = new Lines($lines, {
  fade: number("fade", 10, 0, 86400),
  timestamps: yes("timestamps", true),
  max: Math.round(number("maxlines", 50, 1, 1000)),
  rest: REST,
});

function state(word) {
  $link.dataset.state = word;
  document.getElementById("state").textContent = WORDS[lang][word];
}

const room = (asked.get("room") ?? "").trim();
document.title = room ? `${room} · ${WORDS[lang].title}` : WORDS[lang].title;
// What stands here until the first words; nothing of it in a picture that is laid over another.
const $still = document.getElementById("still");
function still(text) {
  $still.textContent = text;
  $still.hidden = !text || "transparent" in root.dataset;
}
still(room ? WORDS[lang].still(room) : WORDS[lang].ask);

window.forebay = { lines, reader: null };
if (room) {
  window.forebay.reader = new RoomReader(room, {
    passphrase: asked.get("passphrase"),
    view: asked.get("view"),
    shows: true,
    on: {
      caption: (data) => { still(""); lines.caption(data); },
      preview: (data) => { still(""); lines.preview(data); },
      state: (word) => { if (word === "refused") still(""); state(word); },
      reset: () => lines.clear(),
    },
  });
} else state("none");
