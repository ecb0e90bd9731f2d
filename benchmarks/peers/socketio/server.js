// A room on socket.io, as its own documentation writes it. POST /pub sends to everybody.
import { createServer } from "node:http";
import { Server } from "socket.io";

const server = createServer((request, response) => {
  let text = "";
  request.on("data", (piece) => { text += piece; });
  request.on("end", () => { io.emit("caption", JSON.parse(text)); response.end("{}"); });
});
const io = new Server(server, { transports: ["websocket"], perMessageDeflate: false });
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("ready"));
