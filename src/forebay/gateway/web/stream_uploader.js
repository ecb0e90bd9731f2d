// Photos in, tiles out: upload, wait, follow, cancel. No dependencies, no page of its own.
//
//   const uploader = new StreamUploader(1);
//   uploader.addEventListener("tile", (e) => draw(e.detail.photo, e.detail.tile));
//   const photo = uploader.add(file, { quality_level: "fast" });
//   uploader.cancel(photo);
//
// maxConcurrent is how many uploads are on the wire at once. It is not how many photos are
// enhanced at once: that is the number of models behind the gateway, and no client changes it.
// A slot is free again when the upload has arrived, because from then on the photo waits in the
// server's queue, where it has a place and a time.
//
// Every event's detail has `photo` ({id, file, options, state, task, error, since}):
//   sent       {loaded, total}     the upload goes on
//   refused    {seconds}           the server is full; tried again by itself after that
//   waiting    {position, eta_s}   its place in the queue; eta_s may be null
//   processing {}                  a model has begun it
//   recovering {}                  its worker was lost; another goes on, finished tiles stay
//   progress   {progress, eta_s}   0..1
//   tile       {tile}              {index, total, x, y, width, height, url}, in result pixels
//   result     {result}            {url, width, height, size_bytes, sha256}
//   done       {}                  it is complete
//   failed     {code, message}     it is over without a result ("cancelled" after cancel)
export class StreamUploader extends EventTarget {
  constructor(maxConcurrent = 1, { base = "", headers = {} } = {}) {
    super();
    this.maxConcurrent = Math.max(1, Math.floor(maxConcurrent));
    this.base = base;
    this.headers = headers;
    this.waiting = [];
    this.uploading = 0;
    this.made = 0;
  }

  // Queue one file. options: tile_size, quality_level, mode, format, quality.
  add(file, options = {}) {
    const photo = { id: ++this.made, file, options, state: "queued", task: null, error: null,
      since: performance.now(), stop: new AbortController() };
    this.waiting.push(photo);
    queueMicrotask(() => this.#next());
    return photo;
  }

  // Stop it wherever it is. The server forgets it at once; a model that works on it stops.
  async cancel(photo) {
    if (photo.state === "done" || photo.state === "failed") return;
    this.waiting = this.waiting.filter((other) => other !== photo);
    photo.stop.abort();
    this.#fail(photo, "cancelled", "");
    if (!photo.task) return;
    try {
      await fetch(`${this.base}/api/v1/tasks/${photo.task}`, { method: "DELETE", headers: this.headers });
    } catch { /* it ends by itself */ }
  }

  #tell(photo, type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail: { photo, ...detail } }));
  }

  #fail(photo, code, message) {
    if (photo.state === "done" || photo.state === "failed") return;
    photo.state = "failed";
    photo.error = { code, message };
    this.#tell(photo, "failed", photo.error);
  }

  #next() {
    while (this.uploading < this.maxConcurrent && this.waiting.length) {
      const photo = this.waiting.shift();
      this.uploading += 1;
      this.#upload(photo).finally(() => { this.uploading -= 1; this.#next(); });
    }
  }

  async #upload(photo) {
    photo.state = "uploading";
    while (photo.state === "uploading") {
      let answer;
      try {
        answer = await this.#send(photo);
      } catch {
        answer = photo.stop.signal.aborted ? { status: -1 } : { status: 0, body: {}, retry: 2 };
      }
      if (answer.status === -1) return;
      if (answer.status === 200) {
        photo.task = answer.body.task_id;
        photo.state = "waiting";
        if (answer.body.position != null) this.#tell(photo, "waiting", answer.body);
        this.#follow(photo);
        return;
      }
      if (![0, 429, 503].includes(answer.status)) {
        this.#fail(photo, answer.body.code ?? String(answer.status), answer.body.detail ?? "");
        return;
      }
      this.#tell(photo, "refused", { seconds: answer.retry });
      await pause(answer.retry * 1000, photo.stop.signal);
    }
  }

  // XMLHttpRequest, because fetch does not tell how far an upload is.
  #send(photo) {
    return new Promise((resolve, reject) => {
      const form = new FormData();
      for (const [name, value] of Object.entries(photo.options)) form.append(name, value);
      form.append("file", photo.file, photo.file.name);
      const request = new XMLHttpRequest();
      request.open("POST", `${this.base}/api/v1/enhance`);
      request.responseType = "json";
      for (const [name, value] of Object.entries(this.headers)) request.setRequestHeader(name, value);
      request.upload.onprogress = (e) => this.#tell(photo, "sent", { loaded: e.loaded, total: e.total });
      request.onload = () => resolve({ status: request.status, body: request.response ?? {},
        retry: Math.max(1, Number(request.getResponseHeader("retry-after")) || 2) });
      request.onerror = reject;
      request.onabort = reject;
      photo.stop.signal.addEventListener("abort", () => request.abort(), { once: true });
      request.send(form);
    });
  }

  // Server-sent events, read with fetch: a dropped connection goes on after the last event.
  async #follow(photo) {
    const url = `${this.base}/api/v1/tasks/${photo.task}/events`;
    let last = "";
    for (let wait = 250; photo.state !== "done" && photo.state !== "failed"; wait = Math.min(wait * 2, 8000)) {
      try {
        const headers = last ? { ...this.headers, "Last-Event-ID": last } : this.headers;
        const response = await fetch(url, { headers, cache: "no-store", signal: photo.stop.signal });
        if (response.status === 404 || response.status === 410) {
          this.#fail(photo, "gone", "");
          return;
        }
        if (response.status === 200) {
          for await (const event of eventsOf(response.body)) {
            wait = 250;
            if (event.id) last = event.id;
            this.#take(photo, event.data);
          }
        }
      } catch { /* the connection broke: go on after what arrived */ }
      if (photo.stop.signal.aborted) return;
      if (photo.state !== "done" && photo.state !== "failed") await pause(wait, photo.stop.signal);
    }
  }

  #take(photo, event) {
    if (photo.state === "done" || photo.state === "failed") return;
    switch (event.type) {
      case "queued": photo.state = "waiting"; this.#tell(photo, "waiting", event); break;
      case "task": if (event.status === "processing") { photo.state = "processing"; this.#tell(photo, "processing"); } break;
      case "processing": photo.state = "processing"; this.#tell(photo, "processing"); break;
      case "recovering": this.#tell(photo, "recovering"); break;
      case "progress": photo.state = "processing"; this.#tell(photo, "progress", event); break;
      case "tile": this.#tell(photo, "tile", { tile: event }); break;
      case "result": this.#tell(photo, "result", { result: event }); break;
      case "completed": photo.state = "done"; this.#tell(photo, "done"); break;
      case "error": this.#fail(photo, event.code, event.message ?? ""); break;
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

// The events of a body, as {id, data}. Comments keep a connection open and say nothing.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const block = text.slice(0, end);
      text = text.slice(end + 2);
      const event = { id: "", data: null };
      for (const line of block.split("\n")) {
        if (line.startsWith("id: ")) event.id = line.slice(4);
        if (line.startsWith("data: ")) event.data = JSON.parse(line.slice(6));
      }
      if (event.data) yield event;
    }
  }
}
