// Microphone to recognition to a room. Words show here at once, whatever the network does.
import "./captions_words.js";
import { Ear } from "./ear.js";
import { frame, phone, swap } from "./frame.js";
import { openMicrophone } from "./microphone.js";
import { retell, tell, tellEnd, tellLost, tellPlace, tellRefused, tellRenewed, untell } from "./notices.js";
import { RoomReader } from "./rooms.js";
import { RoomSender } from "./room_sender.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const KEPT_LAGS = 5000;
const PREVIEW_MS = 150;
let ear = null;
let microphone = null;
let asking = null; // AbortController of what is to become the microphone
let sender = null;
let reader = null;
let told = 0;
const said = new Map(); // seq: when its final stood here
const lags = []; // ms from here and back to this page
const shown = []; // { seq, ms, displays, of }: until it stood on the last display that tells

// --------------------------------------------------------------------------- the room

function settings() {
  return { server: $("server").value.trim(), room: $("room").value.trim(), passphrase: $("passphrase").value, user: $("name").value.trim(), maxWorkers: Number($("workers").value) || 3 };
}

function shownState(state, reason = "") {
  $("sync-state").dataset.state = { ok: "live", retrying: "lost", offline: "lost", refused: "lost" }[state] ?? "idle";
  $("sync-state").dataset.sync = state;
  $("sync-state").textContent = t("spkStates")[state] + (reason && state !== "ok" ? ` (${reason})` : "");
}

function counters(counts) {
  for (const [name, count] of Object.entries(counts)) $(`n-${name}`).textContent = String(count);
}

function sync() {
  sender?.stop();
  reader?.close();
  sender = reader = null;
  shownState($("enable").checked ? "needs" : "idle");
  const form = $("settings");
  for (const field of ["server", "room", "name", "workers"]) localStorage.setItem(`forebay.speak.${field}`, $(field).value);
  $("display").href = `/display?room=${encodeURIComponent($("room").value.trim())}`;
  if (!$("enable").checked || !form.checkValidity()) return;
  const chosen = settings();
  sender = new RoomSender({ ...chosen, on: { state: shownState, counters, sent: () => {} } });
  counters(sender.counts);
  if (new URL(chosen.server, location.href).origin !== location.origin) return; // lag: own rooms only
  reader = new RoomReader(chosen.room, { passphrase: chosen.passphrase, role: "speaker", user: chosen.user, history: false, shown: true, on: { caption: seen, preview() {}, state() {}, reset() {}, shown: displayed } });
}

function seen(data) {
  const since = sender && data.client_id === sender.client ? said.get(data.seq) : undefined;
  if (since === undefined || since.back) return;
  since.back = true;
  lags.push(performance.now() - since.at);
  if (lags.length > KEPT_LAGS) lags.shift();
  $("lag").textContent = spread(lags);
}

function spread(list) {
  const ordered = [...list].sort((a, b) => a - b);
  const at = (q) => Math.round(ordered[Math.min(ordered.length - 1, Math.floor(q * ordered.length))]);
  return `${Math.round(list.at(-1))} ms · p50 ${at(0.5)} · p99 ${at(0.99)}`;
}

function displayed(news) { // one for each gateway that has displays: the last of all counts
  const since = sender && news.client_id === sender.client ? said.get(news.seq) : undefined;
  if (since === undefined || !news.of) return;
  const ms = news.displays ? performance.now() - since.at - news.ago_ms : 0;
  if (!since.shown) {
    since.shown = { seq: news.seq, ms: 0, displays: 0, of: 0 };
    shown.push(since.shown);
    if (shown.length > KEPT_LAGS) shown.shift();
  }
  since.shown.ms = Math.max(since.shown.ms, ms);
  since.shown.displays += news.displays;
  since.shown.of += news.of;
  const seen = shown.filter((one) => one.displays).map((one) => one.ms);
  $("shown").textContent = `${seen.length ? spread(seen) : "–"} · ${t("spkOf")(since.shown.displays, since.shown.of)}`;
}

function say(text) {
  if (!sender) return;
  const seq = sender.send(text.slice(0, 2000));
  said.set(seq, { at: performance.now() });
  if (said.size > KEPT_LAGS) said.delete(said.keys().next().value);
}

$("export").onclick = () => {
  const body = JSON.stringify({ room: $("room").value, counters: sender?.counts ?? null, lag_ms: lags.map((ms) => Math.round(ms * 10) / 10), shown: shown.map((one) => ({ ...one, ms: one.displays ? Math.round(one.ms * 10) / 10 : null })) }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([body], { type: "application/json" }));
  link.download = "captions-lag.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

// ---------------------------------------------------------------------- the microphone

async function record() {
  tellLost(null);
  untell();
  $("welcome").hidden = true;
  busy(true);
  asking = new AbortController();
  try {
    microphone = await openMicrophone(asking.signal);
    ear = new Ear(microphone.rate, news);
    microphone.listen((samples) => ear?.say(samples));
  } catch (error) {
    silence();
    busy(false);
    if (error.word !== "") tell(() => t(error.word ?? "micNone") + (error.detail ?? ""), { bad: true });
  }
}

function busy(yes) {
  if (yes) swap($("record"), $("enough"));
  else swap($("enough"), $("record"));
  if (yes && phone()) $("side").open = false; // the words need the screen now
}

function silence() {
  microphone?.close();
  microphone = null;
}

const news = {
  partial: (m) => {
    $("open").textContent = m.text;
    if (sender && m.text.trim() && performance.now() - told > PREVIEW_MS) { told = performance.now(); sender.preview(m.text.trim().slice(0, 2000)); }
  },
  final: (m) => { $("open").textContent = ""; final(m.text); },
  place: tellPlace,
  refused: tellRefused,
  resumed: () => {},
  renewed: (missing) => { final($("open").textContent); tellRenewed(missing); },
  link: (state) => {
    $("link").dataset.state = state;
    $("link").textContent = t(state);
    if (state === "live") untell();
  },
  end: (facts) => {
    silence();
    final($("open").textContent);
    busy(false);
    tellEnd(facts);
  },
};

function final(text) {
  $("sure").append(text);
  $("open").textContent = "";
  $("log").scrollTop = $("log").scrollHeight;
  if (text.trim()) say(text.trim());
}

function enough(event) {
  if (event.detail > 1) return; // a double click is one wish, and the second would give up
  asking?.abort();
  silence();
  ear?.end();
  if (ear?.active && $("link").dataset.state === "lost") tell(() => t("stopLost"), { bad: true, of: "stop" });
}

$("record").onclick = record;
$("enough").onclick = enough;
$("settings").onsubmit = (event) => event.preventDefault();
$("settings").onchange = sync;

const asked = new URLSearchParams(location.search);
$("server").value = asked.get("server") ?? localStorage.getItem("forebay.speak.server") ?? location.origin;
$("room").value = asked.get("room") ?? localStorage.getItem("forebay.speak.room") ?? "";
$("name").value = asked.get("name") ?? localStorage.getItem("forebay.speak.name") ?? "";
$("workers").value = localStorage.getItem("forebay.speak.workers") ?? "3";
frame({
  kinds: ["recognition"],
  onPools: (list, ready) => { $("record").disabled = !ready; },
  words: () => { document.title = `Forebay: ${t("spkTitle")}`; $("link").textContent = t($("link").dataset.state); shownState($("sync-state").dataset.sync ?? "idle"); retell(); },
});
sync();
window.forebay = { get ear() { return ear; }, get sender() { return sender; }, lags, shown }; // for the curious, and for the browser tests
