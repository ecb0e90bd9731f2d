// A recording over the upload: its words as they come, and its place while it waits.
import { room } from "./room_left.js";
import { t } from "./words.js";

const QUIET_MS = 500; // without an answer for so long, the queue is asked
const ASK_MS = 1000;
const ASKS = 600;

// on: words(text), place(how many wait, seconds or null), heard(seconds), trouble(say).
export async function read(file, signal, on) {
  const answered = new AbortController();
  signal.addEventListener("abort", () => answered.abort());
  watch(file, answered.signal, on.place);
  const form = new FormData();
  form.append("file", file);
  form.append("stream", "true");
  try {
    const answer = await fetch("/v1/audio/transcriptions", { method: "POST", body: form, signal });
    if (answer.ok) await events(answer.body, on, () => answered.abort());
    else await refusal(answer, on);
  } catch {
    if (!signal.aborted) on.trouble(await blame(file));
  }
  answered.abort();
}

// Stops with the answer. A file that is not in the queue by now is being read: others wait there.
async function watch(file, stop, place) {
  let last = 0;
  await pause(QUIET_MS, stop);
  for (let asked = 0; asked < ASKS && !stop.aborted; asked++) {
    const found = await room();
    if (stop.aborted) return;
    if (found && (found.queued || last)) {
      last = last ? Math.min(last, found.queued) : found.queued; // who came later is not before us
      place(last, found.wait_s);
      if (!last) return;
    }
    if (found && !last && asked > 1 + file.size / 2 ** 20) return;
    await pause(ASK_MS, stop);
  }
}

function pause(ms, stop) {
  return new Promise((done) => {
    setTimeout(done, ms);
    stop.addEventListener("abort", done, { once: true });
  });
}

// A file that changed or a folder fails like a server that is away: look at it first.
async function blame(file) {
  const readable = await file.slice(0, 1).arrayBuffer().then(() => true, () => false);
  return () => (readable ? t("fileCut") : t("listenFailed") + t("fileGone"));
}

async function refusal(answer, on) {
  const wait = Number(answer.headers.get("retry-after"));
  if ((answer.status === 503 || answer.status === 429) && wait) return on.trouble(() => t("fileRefused")(wait));
  const said = await answer.json().catch(() => null);
  on.trouble(() => `${t("listenFailed")}${said?.error?.message ?? answer.status}`);
}

async function events(body, on, answered) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let over = false;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += part.value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const line of whole.join("\n").split("\n")) {
      if (!line.startsWith("data: ")) continue;
      answered();
      over ||= event(JSON.parse(line.slice(6)), on); // after trouble no end is good news
    }
  }
  if (!over) on.trouble(() => t("fileCut")); // an answer without its end was cut on its way
}

// Whether it was the last.
function event(m, on) {
  if (m.type === "transcript.text.delta") on.words(m.delta);
  if (m.type === "transcript.text.done") on.heard(m.usage.seconds);
  if (m.type === "error") on.trouble(() => `${t("listenFailed")}${m.error.message}`);
  return m.type !== "transcript.text.delta";
}
