// The operator's page: what every pool does now, and how many workers its load needs.
import "./pools_words.js";
import { frame, kindOf, made, modelOf } from "./frame.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const LOOK_MS = 1000;
const KEPT = 120; // looks that the lines show
const GIVEN = 8; // given-up jobs that are listed
const CELLS = 64; // slots drawn one by one; more become a bar
const SVG = "http://www.w3.org/2000/svg";
const cards = new Map(); // pool name: its card
let status = null;

const none = (value, shown) => value == null ? "–" : shown(value);
const whole = (value) => String(Math.round(value));
const rate = (value) => value > 0 && value < 0.01 ? "< 0.01" : short(value);
const short = (value) => value === 0 ? "0" : value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toPrecision(2);
const seconds = (value) => value >= 5400 ? `${(value / 3600).toFixed(1)} h` : value >= 90 ? `${Math.round(value / 60)} min` : value < 0.01 && value > 0 ? `${(value * 1000).toFixed(1)} ms` : `${short(value)} s`;
const percent = (value) => `${Math.round(value * 100)} %`;
const FIGURES = [
  ["plWorkers", (p) => none(p.workers, whole)], ["plNeeded", (p) => none(p.needed_workers, whole)],
  ["plRunning", (p) => none(p.running, whole)], ["plQueued", (p) => none(p.queued, whole)],
  ["plSpare", (p) => none(p.spare_streams ?? p.free_now, whole)], ["plNow", (p) => none(p.wait_now_s, seconds)],
  ["plLoad", (p) => none(p.load, percent)], ["plRate", (p) => none(p.jobs_per_s, rate)],
  ["plRtf", (p) => none(p.rtf, short)], ["plService", (p) => none(p.service_s, seconds)],
];

function drawn(tag, name) {
  const node = document.createElementNS(SVG, tag);
  node.setAttribute("class", name);
  return node;
}

function card(pool) {
  const spark = drawn("svg", "spark");
  spark.setAttribute("viewBox", `0 0 ${KEPT - 1} 100`);
  spark.setAttribute("preserveAspectRatio", "none");
  spark.setAttribute("role", "img");
  const lines = { running: drawn("polyline", "word"), queued: drawn("polyline", "sound") };
  spark.append(lines.queued, lines.running);
  const found = {
    node: made("article", { className: "work" }), title: made("h2"), verdict: made("p", { className: "verdict" }),
    slots: made("div", { className: "slots" }), spark, lines, past: [], values: [], names: [],
  };
  found.slots.setAttribute("role", "img");
  const figures = made("dl", { className: "times" });
  for (const [name] of FIGURES) {
    const [dt, dd] = [made("dt"), made("dd")];
    dt.dataset.figure = dd.dataset.figure = name;
    found.names.push(dt);
    found.values.push(dd);
    figures.append(made("div", {}, dt, dd));
  }
  found.node.append(found.title, found.verdict, found.slots, spark, figures);
  found.node.dataset.pool = pool.name;
  $("works").append(found.node);
  cards.set(pool.name, found);
  return found;
}

function verdict(pool) {
  if (pool.workers === 0) return ["nobody", t("plNobody")];
  if (pool.needed_workers == null) return ["unknown", t("plUnknown")];
  const missing = pool.needed_workers - pool.workers;
  return missing > 0 ? ["more", t("plMore")(missing)] : ["enough", t("plEnough")];
}

function show(found, pool) {
  found.pool = pool;
  const parts = modelOf(pool).filter((part) => part !== " ");
  const mark = pool.synthetic ? [parts.pop()] : [];
  found.title.replaceChildren(...(parts.length ? [parts[0], made("small", { textContent: kindOf(pool) })] : [kindOf(pool)]), ...mark);
  const [word, said] = verdict(pool);
  found.node.dataset.verdict = word;
  found.verdict.textContent = said;
  fill(found.slots, pool);
  draw(found, pool);
  FIGURES.forEach(([name, figure], i) => {
    found.names[i].textContent = t(name);
    found.values[i].textContent = figure(pool);
  });
}

function fill(box, pool) {
  const busy = Math.min(pool.running, pool.slots);
  box.setAttribute("aria-label", t("plSlotsBusy")(busy, pool.slots));
  box.title = t("plSlotsBusy")(busy, pool.slots);
  const many = pool.slots > CELLS;
  const count = many ? 1 : pool.slots;
  box.classList.toggle("many", many);
  while (box.childElementCount > count) box.lastChild.remove();
  while (box.childElementCount < count) box.append(made("i"));
  [...box.children].forEach((cell, i) => {
    cell.classList.toggle("busy", many || i < busy);
    cell.style.transform = many ? `scaleX(${busy / pool.slots})` : "";
  });
}

function draw({ spark, lines, past }, pool) {
  spark.setAttribute("aria-label", t("plSpark"));
  const top = Math.max(1, pool.slots, ...past.map((p) => Math.max(p.running, p.queued)));
  for (const [name, line] of Object.entries(lines)) {
    line.setAttribute("points", past.map((p, i) => `${KEPT - past.length + i},${98 - 96 * p[name] / top}`).join(" "));
  }
}

function take(pools) {
  const names = new Set(pools.map((pool) => pool.name));
  for (const [name, found] of cards) if (!names.has(name)) { found.node.remove(); cards.delete(name); }
  for (const pool of pools) {
    const found = cards.get(pool.name) ?? card(pool);
    found.past = [...found.past, { running: pool.running, queued: pool.queued }].slice(-KEPT);
    show(found, pool);
  }
  $("empty").hidden = pools.length > 0;
}

function around(found, dead) {
  status = found;
  $("connections").textContent = Object.values(found.connections).reduce((sum, n) => sum + n, 0);
  $("running").textContent = found.running;
  $("queued").textContent = found.queued;
  $("dead").textContent = dead?.length ?? "–";
  given((dead ?? []).slice(0, GIVEN));
  $("up").textContent = seconds(found.uptime_s);
  $("version").textContent = found.version;
}

// Jobs that no worker could finish. Trying again is for when the cause has been mended.
function given(jobs) {
  const key = jobs.map((job) => job.id).join();
  if ($("given").dataset.key === key) return; // a button under somebody's finger stays
  $("given").dataset.key = key;
  $("given").replaceChildren(...jobs.map((job) => {
    const again = made("button", { type: "button", className: "quiet", textContent: t("plAgain") });
    again.onclick = async () => {
      again.disabled = true;
      await fetch(`/api/jobs/${encodeURIComponent(job.id)}/retry`, { method: "POST" }).catch(() => null);
    };
    return made("li", { title: job.message ?? "" }, made("span", { textContent: `${job.pool} · ${job.code}` }), again);
  }));
}

async function read(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}

async function look() {
  try {
    const [capacity, found, jobs] = await Promise.all([read("/v1/capacity"), read("/api/status"), read("/api/jobs?dead=1").catch(() => null)]);
    take(capacity.pools);
    around(found, jobs?.jobs);
    $("notice").hidden = true;
    document.body.dataset.ready = "true";
  } catch {
    $("notice").textContent = t("plLost");
    $("notice").hidden = status === null;
  }
  for (const found of cards.values()) found.node.classList.toggle("stale", !$("notice").hidden);
  setTimeout(look, document.hidden ? 15 * LOOK_MS : LOOK_MS);
}

frame({
  kinds: [], onPools: () => {},
  words: () => {
    document.title = `Forebay: ${t("plTitle")}`;
    $("given").dataset.key = "-";
    for (const found of cards.values()) if (found.pool) show(found, found.pool);
  },
});
look();
