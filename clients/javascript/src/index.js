export { ForebayError } from "./errors.js";
export { events } from "./events.js";
export { ListenSession } from "./listen.js";
export { SpeechSession } from "./speech.js";
