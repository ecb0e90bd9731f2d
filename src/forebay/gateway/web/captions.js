// A name and a passphrase for a new room, and every address that goes with them.
import "./captions_words.js";
import { copy, frame } from "./frame.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const SOUNDS = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu", "cha"];

function words(count, length, join) {
  const bytes = crypto.getRandomValues(new Uint8Array(count * length));
  const word = (from) => Array.from(bytes.slice(from, from + length), (byte) => SOUNDS[byte & 15]).join("");
  return Array.from({ length: count }, (_, index) => word(index * length)).join(join);
}

function another() {
  $("room").value = words(2, 3, "-"); // 24 bits: a name, not a secret
  $("passphrase").value = words(4, 4, "-"); // 64 bits
  show();
}

function show() {
  const room = $("room").value.trim();
  const plain = /^[A-Za-z0-9_-]{1,64}$/.test(room);
  $("bad").hidden = plain;
  $("links").hidden = !plain;
  const at = (path) => `${location.origin}${path}`;
  $("server").textContent = at("/api/send");
  for (const [id, path] of [["display", "/display?room="], ["obs", "/display?transparent=1&timestamps=0&fontsize=32&room="], ["console", "/room?room="], ["speak", "/speak?room="]]) {
    $(id).href = at(path + encodeURIComponent(room));
    $(id).textContent = $(id).href;
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.onclick = () => {
    const from = $(button.dataset.copy);
    copy(button, from.value ?? from.textContent, button.dataset.t);
  };
}
$("again").onclick = another;
$("form").onsubmit = (event) => event.preventDefault();
$("room").oninput = show;
another();
frame({ kinds: [], onPools: () => {}, words: () => { document.title = `Forebay: ${t("capTitle")}`; } });
