// The centrifuge package, unmodified, in Node: reads a room, publishes, loses its connection.
// Says each thing that happens as one JSON line; takes one word a line on stdin.
import { createInterface } from "node:readline";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";

const [url, channel, passphrase] = process.argv.slice(2);
const say = (what, more = {}) => process.stdout.write(`${JSON.stringify({ what, ...more })}\n`);

const sockets = [];
class Watched extends WebSocket {
  constructor(...given) { super(...given); sockets.push(this); }
}

const client = new Centrifuge(url, { websocket: Watched, minReconnectDelay: 50, maxReconnectDelay: 100 });
client.on("connected", (told) => say("connected", { client: told.client }));
client.on("error", (told) => say("error", { code: told.error?.code }));
const sub = client.newSubscription(channel, { data: { user: "node" }, since: { offset: 0, epoch: "" } });
sub.on("subscribed", (told) => say("subscribed", { recovered: told.recovered, wasRecovering: told.wasRecovering, position: told.streamPosition }));
sub.on("subscribing", (told) => say("subscribing", { code: told.code }));
sub.on("unsubscribed", (told) => say("unsubscribed", { code: told.code }));
sub.on("publication", (told) => say("publication", { text: told.data.text, preview: told.data.is_preview, offset: told.offset }));
sub.subscribe();
client.connect();

const commands = {
  cut: () => sockets.at(-1).terminate(),
  publish: async () => { await sub.publish({ user_name: "node", text: "from node", passphrase }); say("published"); },
  forbidden: async () => { try { await sub.publish({ user_name: "node", text: "x", passphrase: "wrong" }); } catch (error) { say("refused", { code: error.code }); } },
  presence: async () => say("presence", { users: Object.values((await sub.presence()).clients).map((one) => one.user) }),
  stats: async () => say("stats", await sub.presenceStats()),
  history: async () => say("history", { texts: (await sub.history({ limit: 2 })).publications.map((one) => one.data.text) }),
  unsubscribe: () => sub.unsubscribe(),
  quit: () => { client.disconnect(); process.exit(0); },
};
for await (const line of createInterface({ input: process.stdin })) await commands[line.trim()]?.();
