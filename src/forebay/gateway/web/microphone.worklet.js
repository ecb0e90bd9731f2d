// Takes the microphone's samples off the audio thread as s16le, about ten times a second.
class Microphone extends AudioWorkletProcessor {
  #held = new Int16Array(Math.round(sampleRate / 10));
  #at = 0;

  process(inputs) {
    const channel = inputs[0]?.[0];
    if (!channel) return true;
    for (const value of channel) {
      this.#held[this.#at++] = Math.max(-1, Math.min(1, value)) * 32767;
      if (this.#at === this.#held.length) {
        const full = this.#held;
        this.#held = new Int16Array(full.length);
        this.#at = 0;
        this.port.postMessage(full, [full.buffer]);
      }
    }
    return true;
  }
}
registerProcessor("microphone", Microphone);
