// The photo page: files in by drop or choice, tiles drawn as they arrive, before and after.
import "./photo_words.js";
import { announce, drops, frame, made as element } from "./frame.js";
import { StreamUploader } from "./stream_uploader.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const SHOWN_PX = 1400; // longest side of a canvas; the result itself is saved whole
const uploader = new StreamUploader(1);
const cards = new Map(); // photo id -> card
let scale = 2; // of the model, as the gateway says it
let begun = null;
let tiles = 0;
let done = 0;

const seconds = (ms) => (ms / 1000).toFixed(1);

function add(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || file.type === "");
  if (!pictures.length) return;
  if (!busy()) { begun = performance.now(); tiles = 0; for (const id of ["first-tile", "first-photo", "in-all"]) $(id).textContent = "–"; $("tiles").textContent = "0"; }
  $("welcome").hidden = true;
  uploader.maxConcurrent = Number($("uploads").value);
  for (const file of pictures) {
    const photo = uploader.add(file, { quality_level: $("level").value });
    cards.set(photo.id, card(photo));
  }
}

const busy = () => [...cards.values()].some(({ photo }) => photo.state !== "done" && photo.state !== "failed");

function card(photo) {
  const before = element("canvas", { className: "before" });
  const after = element("canvas", { className: "after" });
  const level = element("div", { className: "level" });
  const stage = element("div", { className: "stage" }, before, after, level);
  const state = element("div", { className: "state", textContent: t("inQueue") });
  const stop = element("button", { type: "button", textContent: t("cancel") });
  stop.onclick = () => uploader.cancel(photo);
  const acts = element("div", { className: "acts" }, stop);
  const name = element("div", { className: "about" }, element("span", { className: "name", textContent: photo.file.name, title: photo.file.name }));
  const item = element("li", { className: "photo" }, stage, name, state, acts);
  const made = { photo, item, stage, before, after, level, state, stop, acts, ratio: 1, drawn: Promise.resolve(), tell: () => t("inQueue") };
  $("photos").append(item);
  made.ready = show(made);
  return made;
}

// The photo itself, so that something is there before the model has begun.
async function show(made) {
  try {
    const bitmap = await createImageBitmap(made.photo.file);
    if (!made.full) size(made, bitmap.width * scale, bitmap.height * scale);
    made.before.getContext("2d").drawImage(bitmap, 0, 0, made.before.width, made.before.height);
    bitmap.close();
  } catch { /* a format this browser does not show; the tiles will */ }
}

function size(made, width, height) {
  made.ratio = Math.min(1, SHOWN_PX / Math.max(width, height));
  made.full = { width, height };
  for (const canvas of [made.before, made.after]) {
    canvas.width = Math.round(width * made.ratio);
    canvas.height = Math.round(height * made.ratio);
  }
}

function say(made, tell) {
  made.tell = tell;
  made.state.textContent = tell();
}

async function paint(made, url, x, y, width, height) {
  const response = await fetch(url);
  if (!response.ok) return;
  const bitmap = await createImageBitmap(await response.blob());
  const r = made.ratio;
  made.after.getContext("2d").drawImage(bitmap, x * r, y * r, width * r, height * r);
  bitmap.close();
}

// Everything about one card is drawn in the order in which it came.
const then = (made, work) => { made.drawn = made.drawn.then(work).catch(() => {}); };

function hear(type, act) {
  uploader.addEventListener(type, (event) => {
    const made = cards.get(event.detail.photo.id);
    if (made) act(made, event.detail);
  });
}

hear("sent", (made, e) => say(made, () => t("uploading")(Math.round(100 * e.loaded / Math.max(1, e.total)))));
hear("refused", (made, e) => say(made, () => t("photoRefused")(e.seconds)));
hear("waiting", (made, e) => say(made, () => t("photoWaiting")(e.position, e.eta_s == null ? null : Math.ceil(e.eta_s))));
hear("processing", (made) => say(made, () => t("enhancing")(0, null)));
hear("recovering", (made) => say(made, () => t("recovering")));
hear("progress", (made, e) => {
  made.level.style.transform = `scaleX(${e.progress})`;
  say(made, () => t("enhancing")(Math.round(100 * e.progress), e.eta_s == null ? null : Math.ceil(e.eta_s)));
});
hear("tile", (made, { tile }) => then(made, async () => {
  await made.ready;
  if (!made.full) size(made, tile.x + tile.width, tile.y + tile.height);
  await paint(made, tile.url, tile.x, tile.y, tile.width, tile.height);
  tiles += 1;
  made.item.dataset.tiles = String(Number(made.item.dataset.tiles ?? 0) + 1);
  $("tiles").textContent = String(tiles);
  $("water").style.transform = `scaleY(${Math.min(1, (tile.tiles || tile.index + 1) / tile.total)})`;
  if ($("first-tile").textContent === "–") $("first-tile").textContent = `${seconds(performance.now() - begun)} s`;
}));
hear("result", (made, { result }) => then(made, async () => {
  made.result = result;
  if (made.full && made.full.width === result.width && made.full.height === result.height) return;
  size(made, result.width, result.height); // the model is larger or smaller than was thought
  await show(made);
  await paint(made, result.url, 0, 0, result.width, result.height);
}));
hear("done", (made) => then(made, async () => {
  const took = seconds(performance.now() - made.photo.since);
  done += 1;
  $("done").textContent = String(done);
  if ($("first-photo").textContent === "–") $("first-photo").textContent = `${seconds(performance.now() - begun)} s`;
  if (!busy()) $("in-all").textContent = `${seconds(performance.now() - begun)} s`;
  made.item.classList.add("done");
  say(made, () => t("photoDone")(took, made.result.width, made.result.height));
  made.level.remove();
  const slider = element("input", { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", t("compare"));
  slider.oninput = () => { made.after.style.clipPath = `inset(0 0 0 ${slider.value}%)`; };
  slider.oninput();
  made.stage.append(slider);
  const held = document.activeElement === made.stop;
  const link = element("a", { href: made.result.url, download: "", textContent: t("save") });
  made.stop.replaceWith(link);
  if (held) link.focus();
  announce(`${made.photo.file.name}: ${made.state.textContent}`);
}));
hear("failed", (made, e) => {
  made.item.classList.add("failed");
  made.level.remove();
  made.stop.remove();
  say(made, () => e.code === "cancelled" ? t("cancelled") : t("photoFailed") + (e.code === "gone" ? t("photoGone") : t("photoReasons")[e.code] ?? (e.message || e.code)));
  announce(`${made.photo.file.name}: ${made.state.textContent}`);
});

$("files").onchange = () => { add($("files").files); $("files").value = ""; };
drops($("drop"), add);

frame({
  kinds: ["image"],
  onPools: (list, ready) => {
    scale = Number(list[0]?.facts?.scale ?? scale) || scale;
    $("files").disabled = !list.length;
    $("choose").classList.toggle("off", !list.length);
    document.body.dataset.ready = String(ready);
  },
  words: () => {
    for (const option of $("level").options) option.textContent = t("levels")[option.value];
    for (const made of cards.values()) {
      made.state.textContent = made.tell();
      made.stop.textContent = t("cancel");
      const link = made.acts.querySelector("a");
      if (link) link.textContent = t("save");
    }
  },
});
window.forebay = { uploader, cards, add };
