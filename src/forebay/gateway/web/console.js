// The console: one conversation, its gauges, and the state of the pools.
import { Chat } from "./chat.js";
import { frame, announce, made } from "./frame.js";
import { kinds } from "./kinds.js";
import { Player } from "./player.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const MAX_TURNS = 40; // sent along with a prompt; the server cuts to the model's context
const player = new Player();
const turns = [];
const past = []; // {word, sound} in ms, of the last answers
let status = null; // as last told
let answer = null; // {node, heard, ahead, text, sentAt, word, sound, stopAt}

const chat = new Chat({
  text: (delta) => {
    if (answer.word == null) mark("word", "first-word");
    answer.text += delta;
    if (!$("voice").checked) aloud(delta);
    draw();
  },
  audio: (m) => {
    answer.node.classList.add("voiced");
    player.play(Uint8Array.from(atob(m.audio_base64), (c) => c.charCodeAt(0)), m.sample_rate, m.channels, m.unit_index_start, m.units_text);
  },
  place: (m) => { $("place").textContent = m.position > 0 ? t("waiting")(m.position, m.eta_s == null ? null : Math.ceil(m.eta_s)) : t("next"); },
  notice: (m) => tell(m.code === "prompt_truncated" ? t("truncated") : m.message),
  warning: (m) => tell(m.code === "tts_unavailable" ? t("noVoice") : m.message),
  written: () => answer.node.classList.remove("caret"),
  resumed: () => { $("resumed").textContent = String(Number($("resumed").textContent) + 1); },
  link: (state) => { $("link").dataset.state = state; $("link").textContent = t(state); },
  end: finish,
});
player.onFirstSound = () => { if (answer && answer.sound == null) mark("sound", "first-sound"); };

function mark(what, id) {
  answer[what] = performance.now() - answer.sentAt;
  $(id).textContent = `${Math.round(answer[what])} ms`;
  if (what === "word") $("place").textContent = t("next");
}

function send(text) {
  const prompt = text.trim();
  if (!prompt || chat.active) return;
  $("welcome").hidden = true;
  tell("");
  const you = add("said you");
  you.textContent = prompt;
  const holder = add("said");
  const [node, heard, ahead] = [made("div"), made("span"), made("span")];
  node.className = "answer caret";
  heard.className = "heard";
  ahead.className = "ahead";
  node.append(heard, ahead);
  holder.append(node);
  answer = { holder, node, heard, ahead, text: "", sentAt: performance.now(), word: null, sound: null, stopAt: null };
  for (const id of ["first-word", "first-sound", "place", "stopped"]) $(id).textContent = "–";
  const voice = $("voice").checked;
  player.begin();
  if (voice) player.wake();
  chat.say(prompt, { sample_rate: Math.min(48000, player.rate), messages: turns.slice(-MAX_TURNS), text_only: !voice });
  turns.push({ role: "user", content: prompt });
  busy(true);
}

function finish(how, message) {
  busy(false);
  aloud("", true);
  answer.node.classList.remove("caret");
  if (answer.stopAt != null) $("stopped").textContent = `${Math.round(performance.now() - answer.stopAt)} ms`;
  if (how === "stopped") { player.silence(); foot(t("stoppedFoot")); }
  if (how === "gone") foot(t("gone"), true);
  if (how === "failed") {
    const wait = message.retry_after_s ? ` (${Math.ceil(message.retry_after_s)} s)` : "";
    foot((answer.text ? t("cut") : "") + message.message + wait, true);
  }
  if (answer.text) turns.push({ role: "assistant", content: answer.text });
  past.push({ word: answer.word, sound: answer.sound });
  spark();
  draw();
  $("prompt").focus();
}

// A screen reader hears a silent answer sentence by sentence; a spoken one is heard anyway.
let unsaid = "";
function aloud(delta, over = false) {
  unsaid += delta;
  const whole = over ? unsaid.length : unsaid.search(/[.!?。！？\n][^.!?。！？\n]*$/) + 1;
  if (unsaid.slice(0, whole).trim()) announce(unsaid.slice(0, whole).trim());
  unsaid = unsaid.slice(whole);
}

function foot(text, bad = false) {
  answer.holder.append(made("span", { className: bad ? "foot bad" : "foot" }, text));
  announce(text);
}

function add(kind) {
  const node = made("div", { className: kind });
  $("log").append(node);
  node.scrollIntoView({ block: "end" });
  return node;
}

function tell(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function busy(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
}

// What has been heard is ink, what is still ahead is pale; the water shows how far ahead.
function draw() {
  if (!answer) return;
  const units = [...answer.text];
  const heard = answer.node.classList.contains("voiced") ? player.heard() : 0;
  answer.heard.textContent = units.slice(0, heard).join("");
  answer.ahead.textContent = units.slice(heard).join("");
  if (chat.active) $("log").scrollTop = $("log").scrollHeight;
}

let lastAhead = -1;
function tick() {
  const ahead = player.ahead();
  if (Math.abs(ahead - lastAhead) > 0.04 || (ahead === 0 && lastAhead !== 0)) {
    lastAhead = ahead;
    $("ahead").textContent = `${ahead.toFixed(1)} s`;
    $("water").style.transform = `scaleY(${Math.min(ahead / 5, 1)})`;
    draw();
  }
  if (answer && !chat.active && ahead === 0) answer.node.classList.remove("voiced");
  requestAnimationFrame(tick);
}

function spark() {
  const last = past.slice(-12);
  const top = Math.max(100, ...last.flatMap((p) => [p.word ?? 0, p.sound ?? 0]));
  const svg = $("spark");
  svg.replaceChildren();
  for (const what of ["word", "sound"]) {
    const spots = last.map((p, i) => [last.length === 1 ? 120 : 8 + (224 * i) / (last.length - 1), p[what]]).filter((s) => s[1] != null);
    const shape = document.createElementNS("http://www.w3.org/2000/svg", spots.length > 1 ? "polyline" : "circle");
    if (spots.length > 1) shape.setAttribute("points", spots.map(([x, v]) => `${x},${60 - (54 * v) / top}`).join(" "));
    else if (spots.length === 1) { shape.setAttribute("cx", spots[0][0]); shape.setAttribute("cy", 60 - (54 * spots[0][1]) / top); shape.setAttribute("r", 3); }
    shape.setAttribute("class", what);
    svg.append(shape);
  }
}

function poolsChanged(list, ready, found) {
  status = found;
  kinds($("kinds"), found.pools, found.views);
  $("here-more").hidden = !found.views.includes("pools");
  const remote = list.some((pool) => pool.engine === "openai");
  $("hint").textContent = t(remote ? "hintRemote" : "hint");
  const waiting = list.length > 0 && !ready;
  if (waiting && $("notice").hidden) { tell(t("notReady")); $("notice").dataset.loading = "1"; }
  if (!waiting && $("notice").dataset.loading) { tell(""); delete $("notice").dataset.loading; }
}

function words() {
  if (status) kinds($("kinds"), status.pools, status.views);
  $("prompt").placeholder = t("placeholder");
  $("link").textContent = t($("link").dataset.state);
  $("tries").replaceChildren(...t("tries").map((text) => {
    const button = made("button", { type: "button" }, text);
    button.onclick = () => send(text);
    return button;
  }));
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  send($("prompt").value);
  if (chat.active) { $("prompt").value = ""; grow(); }
};
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
};
const grow = () => { $("prompt").style.height = "auto"; $("prompt").style.height = `${$("prompt").scrollHeight}px`; };
$("prompt").oninput = grow;
$("stop").onclick = () => { answer.stopAt = performance.now(); player.silence(); chat.stop(); };

window.forebay = { chat, player }; // for the curious, and for the browser tests
frame({ kinds: ["text", "speech"], onPools: poolsChanged, words, everyMs: () => $("welcome").hidden ? 10000 : 1500 });
tick();
$("prompt").focus();
