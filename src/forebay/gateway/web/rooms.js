// Reading a room: one socket that comes back by itself and goes on where it stopped.
// It speaks the part of the Centrifuge protocol that the gateway serves.
const SILENT_MS = 40000; // the server pings every 25 s
const LOST_MS = [200, 5000]; // first and longest wait before trying again
const TELL_MS = 100; // what stands on this display is told at most so often
const TOLD = 16; // positions in one message; what is told of one goes for all before it

export class RoomReader {
  // on: { caption(data, offset), preview(data), state(word), reset(), shown(news) }
  // shows: this is a display, which can tell what it shows; shown: hear what displays show.
  constructor(room, { passphrase, view, role = "display", user = "", history = true, shows = false, shown = false, on }) {
    this.room = room;
    this.on = on;
    this.last = null; // { epoch, offset } of what was shown
    this.data = { role, user, history, shows, shown };
    this.asked = false; // to tell what is shown
    this.standing = []; // [offset, since] that is not told yet
    if (passphrase) this.data.passphrase = passphrase;
    this.token = view ?? "";
    this.tries = 0;
    this.closed = false;
    this.open();
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = this.socket = new WebSocket(`${scheme}//${location.host}/connection/websocket`);
    this.on.state(this.last ? "lost" : "connecting");
    socket.onopen = () => {
      const subscribe = { channel: this.room, data: this.data };
      if (this.last) Object.assign(subscribe, { recover: true, epoch: this.last.epoch, offset: this.last.offset });
      const connect = { name: "display", token: this.token, data: {} };
      socket.send(`${JSON.stringify({ id: 1, connect })}\n${JSON.stringify({ id: 2, subscribe })}`);
    };
    socket.onmessage = (event) => {
      this.heard();
      for (const line of event.data.split("\n")) if (line.trim()) this.take(JSON.parse(line));
    };
    socket.onclose = () => { if (socket === this.socket) this.again(); };
    this.heard();
  }

  heard() {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => this.drop(), SILENT_MS);
  }

  drop() { // a socket that says nothing is not waited for, not even to close
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.again();
  }

  again() {
    clearTimeout(this.watch);
    if (this.closed) return;
    this.on.state("lost");
    const wait = Math.min(LOST_MS[1], LOST_MS[0] * 2 ** this.tries++) * (0.5 + Math.random());
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), wait);
  }

  take(said) {
    if (said.error) {
      this.refused = said.error;
      if (said.error.code === 101 || said.error.code === 103) { this.closed = true; this.on.state("refused"); }
      this.socket.close();
      return;
    }
    if (said.subscribe) this.subscribed(said.subscribe);
    if (said.push?.unsubscribe) this.socket.close();
    const news = said.push?.message?.data?.shown;
    if (news) this.on.shown?.(news);
    const pub = said.push?.pub;
    if (!pub) return;
    if (pub.offset === undefined) this.on.preview(pub.data);
    else if (pub.offset > this.last.offset) { this.last.offset = pub.offset; this.on.caption(pub.data, pub.offset); this.show(pub.offset); }
  }

  show(offset) { // on the screen when the frame after it is drawn; a hidden page draws none
    if (!this.asked) return;
    requestAnimationFrame(() => setTimeout(() => {
      this.standing.push([offset, performance.now()]);
      this.telling ??= setTimeout(() => this.tell(), Math.max(0, (this.toldAt ?? 0) + TELL_MS - performance.now()));
    }));
  }

  tell() {
    this.telling = undefined;
    const now = this.toldAt = performance.now();
    const at = this.standing.slice(-TOLD).map(([offset, since]) => [offset, Math.round(now - since)]);
    this.standing = [];
    if (this.asked && this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ send: { data: { shown: { channel: this.room, at } } } }));
  }

  subscribed(answer) {
    this.tries = 0;
    this.asked = answer.data?.shows === true;
    if (this.last && !answer.recovered) this.on.reset(); // what follows is all that is kept
    this.last = { epoch: answer.epoch, offset: answer.offset };
    this.on.state("live");
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.watch);
    this.socket?.close();
  }
}
