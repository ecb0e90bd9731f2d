// The microphone of a page: its samples, ten times a second.
const WORKLET = "/static/microphone.worklet.js";

// Throws an Error whose `word` names what to say; none where `signal` ended the wait.
export async function openMicrophone(signal) {
  if (!navigator.mediaDevices?.getUserMedia) throw failed("micNone");
  const opened = new Microphone();
  try {
    await Promise.race([opened.open(), ended(signal)]);
  } catch (error) {
    opened.close();
    throw "word" in error ? error : failed(error.name === "NotAllowedError" ? "micDenied" : "micNone", error.name);
  }
  return opened;
}

const failed = (word, name = "") => Object.assign(new Error(name), { word, detail: word === "micNone" && name ? ` (${name})` : "" });

const ended = (signal) => new Promise((_, fail) => signal.addEventListener("abort", () => fail(failed("")), { once: true }));

class Microphone {
  stream = null;
  context = null;
  node = null;
  #closed = false;

  get rate() { return this.context.sampleRate; }

  async open() {
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true } });
    if (this.#closed) return this.close(); // allowed after nobody wanted it any more
    this.context = new AudioContext();
    // The one part that comes from the server.
    await this.context.audioWorklet.addModule(WORKLET).catch(() => { throw failed("micAway"); });
    if (this.#closed) return;
    this.node = new AudioWorkletNode(this.context, "microphone", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
  }

  listen(hear) {
    this.node.port.onmessage = (event) => hear(event.data);
    this.context.createMediaStreamSource(this.stream).connect(this.node);
  }

  close() {
    this.#closed = true;
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}
