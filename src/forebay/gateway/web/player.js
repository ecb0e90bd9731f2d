// Plays s16le PCM chunks one after another, gaplessly, and says which unit is being heard.
export class Player {
  #context = null;
  #nextAt = 0;
  #pieces = []; // {at, ends, unit, units, node}
  onFirstSound = () => {};

  // Browsers allow sound only after a gesture: call this from the click or key that sends.
  wake() {
    this.#context ??= new AudioContext();
    if (this.#context.state === "suspended") this.#context.resume();
  }

  get rate() { return this.#context?.sampleRate ?? 24000; }

  play(bytes, rate, channels, unit, text) {
    this.wake();
    const frames = Math.floor(bytes.byteLength / 2 / channels);
    if (frames === 0) return;
    const samples = new Int16Array(bytes.buffer, bytes.byteOffset, frames * channels);
    const buffer = this.#context.createBuffer(channels, frames, rate);
    for (let c = 0; c < channels; c++) {
      const out = buffer.getChannelData(c);
      for (let i = 0; i < frames; i++) out[i] = samples[i * channels + c] / 32768;
    }
    const node = this.#context.createBufferSource();
    node.buffer = buffer;
    node.connect(this.#context.destination);
    const now = this.#context.currentTime;
    const fresh = this.#nextAt <= now;
    const at = fresh ? now + 0.03 : this.#nextAt; // 30 ms: the first piece may not start in the past
    node.start(at);
    if (this.#pieces.length === 0 && fresh) this.onFirstSound();
    this.#nextAt = at + buffer.duration;
    this.#pieces.push({ at, ends: this.#nextAt, unit, units: [...text].length, node });
  }

  // Seconds of speech received and not yet heard.
  ahead() {
    return this.#context ? Math.max(0, this.#nextAt - this.#context.currentTime) : 0;
  }

  // Units heard so far.
  heard() {
    const now = this.#context?.currentTime ?? 0;
    let units = 0;
    for (const p of this.#pieces) {
      if (now >= p.ends) units = p.unit + p.units;
      else if (now > p.at) return p.unit + Math.floor((p.units * (now - p.at)) / (p.ends - p.at));
      else break;
    }
    return units;
  }

  silence() {
    for (const p of this.#pieces) {
      try { p.node.stop(); } catch { /* it had not been started: nothing to stop */ }
    }
    this.#pieces = [];
    this.#nextAt = 0;
  }

  begin() { this.silence(); }
}
