// The notice above the buttons of a page that listens. What it says is kept as a function, so
// that it can be said again in another language, or with fewer seconds.
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
let told = null; // {say, bad, of}
let lost = null; // what went missing: stays beside whatever is told, until the next recording
let counting = 0;

// `of`: what it is about, for `untell`.
export function tell(say, { bad = false, of = "" } = {}) {
  clearInterval(counting);
  told = { say, bad, of };
  retell();
}

// Takes the notice away: any, or only one about `of`.
export function untell(...of) {
  if (of.length && !of.includes(told?.of)) return;
  clearInterval(counting);
  told = null;
  retell();
}

// The same with the seconds that are left.
export function tellUntil(say, seconds, facts) {
  const end = performance.now() + seconds * 1000;
  tell(() => say(Math.max(0, Math.ceil((end - performance.now()) / 1000))), facts);
  counting = setInterval(retell, 500);
}

export function tellLost(say) { lost = say; retell(); }

export function retell() {
  const text = [lost, told?.say].filter(Boolean).map((say) => say()).join(" ");
  if ($("notice").textContent !== text) $("notice").textContent = text;
  $("notice").hidden = !text;
  $("notice").classList.toggle("bad", Boolean(lost) || told?.bad === true);
}

// ------------------------------------------------- what an Ear has to say, on every such page

export const tellRefused = (seconds, why) => tellUntil((s) => t("refusals")[why] + t("again")(s), seconds, { bad: true, of: "door" });

export function tellPlace(m) {
  const seconds = m.eta_s == null ? null : Math.ceil(m.eta_s);
  if (m.position > 0) tell(() => t("queued")(m.position, seconds), { of: "queue" });
  else untell("queue");
}

export const tellRenewed = (missing) => tellLost(() => t("renewed")(tenths(missing)));

export function tellEnd({ how, message, unheard }) {
  if (how === "completed" || how === "stopped") return untell();
  const why = { gone: () => t("listenGone"), over: () => t("listenOver"), failed: () => `${t("listenCut")}${message.message}.` }[how];
  tell(() => `${why()} ${tenths(unheard) > 0 ? t("unheardFor")(tenths(unheard)) : ""}${t("beginAgain")}`, { bad: true });
}

const tenths = (seconds) => Number(seconds.toFixed(1));
