// The notebook page: which notebook, its cells, its kernel. The address holds the notebook's id,
// so a reload or another device finds it; code that was not run yet is kept in this browser.
import { frame } from "./frame.js";
import { CellView } from "./notebook_cell.js";
import "./notebook_words.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 3; // event streams open together; a browser has six connections to a server
const cells = new Map();
let id = location.hash.slice(1);
let kernel = null;

const base = () => `/v1/notebooks/${id}`;
const key = () => `forebay.notebook.${id}`;

const book = {
  base,
  changed: () => { save(); $("interrupt").disabled = ![...cells.values()].some((cell) => cell.busy); },
  removed: (cell) => { cells.delete(cell.id); save(); if (!cells.size) add(); },
  next: (cell) => {
    const all = [...cells.values()];
    const after = all[all.indexOf(cell) + 1] ?? add();
    after.code.focus();
  },
};

function save() {
  const kept = [...cells.values()].map((cell) => ({ cell: cell.id, code: cell.code.value, ran: cell.ran === true }));
  try { localStorage.setItem(key(), JSON.stringify(kept)); } catch { /* full: only drafts are lost */ }
}

function add(name = crypto.getRandomValues(new Uint32Array(1))[0].toString(16), code = "") {
  const view = new CellView(book, name, code);
  cells.set(name, view);
  $("cells").append(view.node);
  save();
  return view;
}

function tell(text, bad = false) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
  $("notice").classList.toggle("bad", bad);
}

async function ask(path, options) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error?.message ?? answer.status), { status: answer.status });
  return body;
}

async function open() {
  try {
    if (!/^[\w-]{1,128}$/.test(id)) {
      id = (await ask("/v1/notebooks", { method: "POST" })).notebook;
      history.replaceState(null, "", `#${id}`);
    }
    let record = { cells: [] };
    try { record = await ask(base()); } catch (error) { if (error.status !== 404) throw error; }
    kernel = record.kernel ?? null;
    await show(record.cells);
    tell("");
  } catch (error) {
    tell(`${t("notConnected")}${error.message}`, true);
  }
  document.body.dataset.ready = "true";
}

// Cells that ran are the server's word; drafts and their order are this browser's.
async function show(ran) {
  const known = new Map(ran.map((cell) => [cell.cell, cell]));
  let drafts = [];
  try { drafts = JSON.parse(localStorage.getItem(key()) ?? "[]"); } catch { /* somebody else's */ }
  const order = drafts.filter((d) => typeof d.cell === "string" && typeof d.code === "string");
  for (const cell of ran) if (!order.some((d) => d.cell === cell.cell)) order.push(cell);
  const waiting = [];
  for (const { cell, code, ran: here } of order) {
    const view = add(cell, code);
    const found = known.get(cell);
    if (found?.state === "forgotten") view.output.tell(t("cellForgotten"));
    else if (found || here === true) { // another gateway may have run it
      view.ran = true;
      waiting.push(view);
    }
  }
  if (!cells.size) add();
  words();
  const readers = Array.from({ length: AT_ONCE }, async () => {
    for (let view = waiting.shift(); view; view = waiting.shift()) await view.follow();
  });
  Promise.all(readers);
}

function words() {
  for (const cell of cells.values()) cell.words();
  if (!kernel || kernel.synthetic) { $("confined").textContent = ""; return; }
  $("confined").textContent = t(!kernel.confined ? "unconfined" : kernel.network ? "confinedNet" : "confined");
}

async function control(what) {
  try { await ask(`${base()}/${what}`, { method: "POST" }); tell(""); } catch (error) { tell(`${t("notConnected")}${error.message}`, true); }
}

$("add").onclick = () => add().code.focus();
$("interrupt").onclick = () => control("interrupt");
$("restart").onclick = () => { if (confirm(t("restartAsk"))) control("restart"); };
$("fresh").onclick = () => { history.pushState(null, "", location.pathname); location.reload(); };
addEventListener("hashchange", () => location.reload());

let opened = false;
frame({
  kinds: ["kernel"],
  onPools: (list, ready) => {
    if (ready && !opened) { opened = true; open(); }
  },
  words,
});
window.forebay = { cells }; // for the curious, and for the browser tests
