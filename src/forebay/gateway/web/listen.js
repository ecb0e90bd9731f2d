// Speech to text: from the microphone over /v1/listen, or from a file over the upload.
import { Ear } from "./ear.js";
import { copy, drops, frame, swap } from "./frame.js";
import { read } from "./listen_file.js";
import { openMicrophone } from "./microphone.js";
import { retell, tell, tellEnd, tellLost, tellPlace, tellRefused, tellRenewed, untell } from "./notices.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
let ear = null;
let microphone = null;
let asking = null; // AbortController of what is to become the microphone
let reading = null; // AbortController of a file
let heard = 0; // seconds of sound that have words, or were silent
let apart = false; // the next words are of another recording than the last
let place = null; // says the place in the queue

function final(text) {
  if (!text) return;
  const gap = apart && $("sure").textContent ? "\n\n" : "";
  apart = false;
  $("sure").append(gap + text); // added, not written again: a screen reader reads what is new
  $("copy").disabled = false;
  $("open").textContent = "";
  $("log").scrollTop = $("log").scrollHeight;
}

function begin() {
  $("welcome").hidden = true;
  $("open").textContent = "";
  apart = true;
  heard = 0;
  for (const id of ["said-for", "heard-for", "behind"]) $(id).textContent = "–";
  placed(null);
  tellLost(null);
  untell();
  busy(true);
}

// The welcome comes back where nothing was heard.
function done() {
  busy(false);
  $("welcome").hidden = Boolean($("sure").textContent);
}

function busy(yes) {
  if (yes) swap($("record"), $("enough"));
  else swap($("enough"), $("record"));
  $("open-file").hidden = yes;
}

function placed(say) {
  place = say;
  $("place").textContent = say?.() ?? "–";
}

const waits = (n, eta) => placed(() => (n > 0 ? t("waiting")(n, eta == null ? null : Math.ceil(eta)) : t("next")));

// `word`: what is said beside it, where it is not the state's own.
function link(state, word = state) {
  Object.assign($("link").dataset, { state, word });
  $("link").textContent = t(word);
}

// ---------------------------------------------------------------------- microphone

async function record() {
  begin();
  asking = new AbortController();
  try {
    microphone = await openMicrophone(asking.signal);
    ear = new Ear(microphone.rate, news);
    microphone.listen((samples) => ear?.say(samples));
    gauge();
  } catch (error) {
    silence();
    done();
    if (error.word !== "") tell(() => t(error.word ?? "micNone") + (error.detail ?? ""), { bad: true });
  }
}

function silence() {
  microphone?.close();
  microphone = null;
}

const news = {
  partial: (m) => { $("open").textContent = m.text; reached(m.end); },
  final: (m) => { $("open").textContent = ""; final(m.text); reached(m.end); },
  place: (m) => { waits(m.position, m.eta_s); tellPlace(m); },
  refused: tellRefused,
  resumed: () => { $("resumed").textContent = String(Number($("resumed").textContent) + 1); },
  renewed: (missing) => { final($("open").textContent); apart = true; tellRenewed(missing); },
  link: (state) => {
    link(state);
    if (state === "live") untell();
  },
  end: (facts) => {
    silence();
    final($("open").textContent);
    done();
    tellEnd(facts);
  },
};

function enough(event) {
  if (event.detail > 1) return; // a double click is one wish, and the second would give up
  reading?.abort();
  asking?.abort();
  silence();
  ear?.end();
  if (ear?.active && $("link").dataset.state === "lost") tell(() => t("stopLost"), { bad: true, of: "stop" });
}

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
  link("live", "reading");
  await read(file, reading.signal, {
    words: (text) => { if (place) waits(0); final(text); },
    place: waits,
    heard: (seconds) => {
      if (place) waits(0);
      $("heard-for").textContent = `${seconds.toFixed(1)} s`;
      if (!seconds) tell(() => t("fileEmpty"), { bad: true });
    },
    trouble: (say) => { placed(null); tell(say, { bad: true }); },
  });
  reading = null;
  link("idle");
  done();
}

// -------------------------------------------------------------------------- the page

$("record").onclick = record;
$("enough").onclick = enough;
$("file").onchange = () => { const [file] = $("file").files; $("file").value = ""; if (file) upload(file); };
$("copy").onclick = () => copy($("copy"), $("sure").textContent.trim(), "copy");
drops($("drop"), ([file]) => { if (file && !$("file").disabled && !$("open-file").hidden) upload(file); });

frame({
  kinds: ["recognition"],
  onPools: (list, ready) => { $("record").disabled = !ready; $("file").disabled = !ready; $("open-file").classList.toggle("off", !ready); },
  words: () => { link($("link").dataset.state, $("link").dataset.word); placed(place); retell(); },
});
window.forebay = { get ear() { return ear; } }; // for the curious, and for the browser tests
