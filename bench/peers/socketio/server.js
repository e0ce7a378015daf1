// Socket.IO with its usual production settings: WebSocket only, native addons, and the request of a connection let go,
// as its page on performance tuning says. POST / with an array of events sends each to all, or to the room of its user;
// it runs in this process, as Socket.IO's own way of publishing does.
"use strict";
const http = require("http");
const { Server } = require("socket.io");

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    if (request.method === "POST") {
      for (const event of JSON.parse(Buffer.concat(pieces))) (event.user ? io.to(event.user) : io).emit("event", event);
    }
    response.writeHead(200, { "Content-Length": 0 });
    response.end();
  });
});
server.keepAliveTimeout = 600_000;

const io = new Server(server, { transports: ["websocket"], serveClient: false });
io.engine.on("connection", (socket) => {
  socket.request = null;
});
io.on("connection", (socket) => {
  if (socket.handshake.auth.user) socket.join(socket.handshake.auth.user);
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
