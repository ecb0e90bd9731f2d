// Speech to text: from the microphone over /v1/listen, or from a file over the upload.
import { Ear } from "./ear.js";
import { copy, drops, frame, swap } from "./frame.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
let ear = null;
let microphone = null; // {context, stream, node}
let reading = null; // AbortController of a file
let heard = 0; // seconds of sound that have words, or were silent
let countdown = null;

function tell(text, bad = false) {
  clearInterval(countdown);
  $("notice").textContent = text;
  $("notice").hidden = !text;
  $("notice").classList.toggle("bad", bad);
}

function final(text) {
  $("sure").append(text); // added, not written again: a screen reader reads what is new
  $("copy").disabled = false;
  $("open").textContent = "";
  $("log").scrollTop = $("log").scrollHeight;
}

function begin() {
  $("welcome").hidden = true;
  if ($("sure").textContent) $("sure").append("\n\n");
  $("open").textContent = "";
  heard = 0;
  for (const id of ["said-for", "heard-for", "behind", "place"]) $(id).textContent = "–";
  tell("");
  busy(true);
}

function busy(yes) {
  if (yes) swap($("record"), $("enough"));
  else swap($("enough"), $("record"));
  $("open-file").hidden = yes;
}

// ---------------------------------------------------------------------- microphone

async function record() {
  if (!navigator.mediaDevices?.getUserMedia) return tell(t("micNone"), true);
  begin();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true } });
    const context = new AudioContext();
    microphone = { context, stream, node: null };
    await context.audioWorklet.addModule("/static/microphone.worklet.js");
    const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    microphone.node = node;
    ear = new Ear(context.sampleRate, news);
    node.port.onmessage = (event) => ear?.say(event.data);
    context.createMediaStreamSource(stream).connect(node);
    gauge();
  } catch (error) {
    silence();
    busy(false);
    tell(error.name === "NotAllowedError" ? t("micDenied") : `${t("micNone")} (${error.name})`, true);
  }
}

function silence() {
  microphone?.stream.getTracks().forEach((track) => track.stop());
  microphone?.context.close();
  microphone = null;
}

const news = {
  partial: (m) => { $("open").textContent = m.text; reached(m.end); },
  final: (m) => { final(m.text); reached(m.end); },
  place: (m) => {
    const seconds = m.eta_s == null ? null : Math.ceil(m.eta_s);
    $("place").textContent = m.position > 0 ? t("waiting")(m.position, seconds) : t("next");
    tell(m.position > 0 ? t("queued")(m.position, seconds) : "");
  },
  refused: (seconds) => {
    let left = seconds;
    tell(t("refused")(left), true);
    countdown = setInterval(() => { left = Math.max(0, left - 1); $("notice").textContent = t("refused")(left); }, 1000);
  },
  resumed: () => { $("resumed").textContent = String(Number($("resumed").textContent) + 1); },
  link: (state) => {
    $("link").dataset.state = state;
    $("link").textContent = t(state);
    if (state === "live") tell("");
  },
  end: (how, m) => {
    silence();
    busy(false);
    if (how === "failed") tell(`${t("listenCut")}${m.message}`, true);
    else if (how === "gone") tell(t("gone"), true);
    else tell("");
    if ($("open").textContent) final($("open").textContent);
  },
};

function reached(end) {
  heard = Math.max(heard, end);
}

function gauge() {
  if (!ear) return;
  const said = ear.said / ear.rate;
  const unheard = (ear.said - ear.stored) / ear.rate;
  $("said-for").textContent = `${said.toFixed(1)} s`;
  $("heard-for").textContent = `${heard.toFixed(1)} s`;
  $("behind").textContent = `${Math.max(0, said - heard).toFixed(1)} s`;
  $("unheard").textContent = `${unheard.toFixed(1)} s`;
  $("water").style.transform = `scaleY(${Math.min(unheard / 5, 1)})`;
  if (ear.active) setTimeout(gauge, 200);
}

// ---------------------------------------------------------------------------- file

async function upload(file) {
  begin();
  reading = new AbortController();
  $("link").dataset.state = "live";
  $("link").textContent = t("reading");
  const form = new FormData();
  form.append("file", file);
  form.append("stream", "true");
  try {
    const answer = await fetch("/v1/audio/transcriptions", { method: "POST", body: form, signal: reading.signal });
    if (answer.ok) await events(answer.body.pipeThrough(new TextDecoderStream()).getReader());
    else await refusal(answer);
  } catch (error) {
    if (error.name !== "AbortError") tell(`${t("listenFailed")}${error.message}`, true);
  }
  reading = null;
  $("link").dataset.state = "idle";
  $("link").textContent = "";
  busy(false);
}

async function refusal(answer) {
  const wait = Number(answer.headers.get("retry-after"));
  if ((answer.status === 503 || answer.status === 429) && wait) return tell(t("fileRefused")(wait), true);
  const said = await answer.json().catch(() => null);
  tell(`${t("listenFailed")}${said?.error?.message ?? answer.status}`, true);
}

async function events(reader) {
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += part.value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const line of whole.join("\n").split("\n")) if (line.startsWith("data: ")) event(JSON.parse(line.slice(6)));
  }
}

function event(m) {
  if (m.type === "transcript.text.delta") final(m.delta);
  if (m.type === "transcript.text.done") $("heard-for").textContent = `${m.usage.seconds.toFixed(1)} s`;
  if (m.type === "error") tell(`${t("listenFailed")}${m.error.message}`, true);
}

// -------------------------------------------------------------------------- the page

$("record").onclick = record;
$("enough").onclick = () => { reading?.abort(); silence(); ear?.end(); };
$("file").onchange = () => { const [file] = $("file").files; $("file").value = ""; if (file) upload(file); };
$("copy").onclick = () => copy($("copy"), $("sure").textContent.trim(), "copy");
drops($("drop"), ([file]) => { if (file && !$("file").disabled && !$("open-file").hidden) upload(file); });

frame({
  kinds: ["recognition"],
  onPools: (list, ready) => { $("record").disabled = !ready; $("file").disabled = !ready; $("open-file").classList.toggle("off", !ready); },
  words: () => { $("link").textContent = t($("link").dataset.state); },
});
window.forebay = { get ear() { return ear; } }; // for the curious, and for the browser tests
