// A whole client in another language: docs/PROTOCOL.md, Node.js and @msgpack/msgpack, nothing else.
// node client.mjs DATA_DIR/run/query.sock EVENT_ID
import net from "node:net";
import { decode, encode } from "@msgpack/msgpack";

const [path, id] = process.argv.slice(2);
const socket = net.connect(path);
let buffer = Buffer.alloc(0);
const waiting = [];

const send = (message) => {
  const body = encode(message);
  const head = Buffer.alloc(4);
  head.writeUInt32LE(body.length);
  socket.write(Buffer.concat([head, body]));
  return new Promise((resolve) => waiting.push(resolve));
};
socket.on("data", (data) => {
  buffer = Buffer.concat([buffer, data]);
  while (buffer.length >= 4 && buffer.length >= 4 + buffer.readUInt32LE(0)) {
    const size = buffer.readUInt32LE(0);
    waiting.shift()(decode(buffer.subarray(4, 4 + size), { useBigInt64: false }));
    buffer = buffer.subarray(4 + size);
  }
});

const welcome = await send([0, 1, "node"]); // Hello: protocol 1
const [tag, , generation, answers] = await send([7, 1, id, { space: "attack", top_k: 5 }]); // QuerySimilar
if (tag !== 69) throw new Error(`code ${generation}: ${answers}`); // Failure: [67, request_id, code, detail]
for (const [, distance, , , event] of answers[0][8]) console.log(event.event_id, distance.toFixed(4), event.family);
console.error(`protocol ${welcome[2]}, generation ${generation}`);
socket.end();
