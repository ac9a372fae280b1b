// Sends text and binary messages of given sizes through an echo server, one after the other:
//     node echo_client.js ws://127.0.0.1:8000/echo plain 0 1 125
// The second argument is "plain" or "deflate". Prints one line per message that came back unchanged; ends with status 1 at the first other event.
'use strict';

const { randomBytes } = require('crypto');
const WebSocket = require('ws');

const [url, compression, ...sizes] = process.argv.slice(2);
const messages = sizes.map(Number).flatMap((size) => [text(size), randomBytes(size)]);
let next = 0;

function text(octets) {
  const wide = 'ä€😀'; // 2 + 3 + 4 octets
  return wide.repeat(Math.floor(octets / 9)) + 'x'.repeat(octets % 9);
}

function fail(why) {
  console.error(why);
  process.exit(1);
}

const socket = new WebSocket(url, {
  perMessageDeflate: compression === 'deflate',
  maxPayload: 1 << 28,
  handshakeTimeout: 10000,
});

function sendNext() {
  if (next === messages.length) {
    socket.close(4321, 'done');
  } else {
    socket.send(messages[next]);
  }
}

socket.on('open', () => {
  if ((socket.extensions !== '') !== (compression === 'deflate')) {
    fail(`the extensions are '${socket.extensions}'`);
  }
  sendNext();
});
socket.on('message', (data, isBinary) => {
  const sent = messages[next];
  if (isBinary !== Buffer.isBuffer(sent) || !data.equals(Buffer.from(sent))) {
    fail(`message ${next} came back changed`);
  }
  console.log(`${isBinary ? 'binary' : 'text'} ${data.length}`);
  next += 1;
  sendNext();
});
socket.on('close', (code) => {
  if (code !== 4321 || next !== messages.length) {
    fail(`closed with ${code} after ${next} messages`);
  }
});
socket.on('error', (error) => fail(String(error)));
