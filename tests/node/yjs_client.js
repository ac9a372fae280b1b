// Edits one document in two clients at a time, and another in a third: node yjs_client.js ws://127.0.0.1:8000/yjs
'use strict';

const WebSocket = require('ws');
const { WebsocketProvider } = require('y-websocket');
const Y = require('yjs');

const [url] = process.argv.slice(2);

function open(room) {
  const doc = new Y.Doc();
  const provider = new WebsocketProvider(url, room, doc, { WebSocketPolyfill: WebSocket, disableBc: true });
  return { doc, provider, text: doc.getText('text') };
}

function until(emitter, event, condition) {
  return new Promise((resolve) => {
    const look = () => { if (condition()) { emitter.off(event, look); resolve(); } };
    emitter.on(event, look);
    look();
  });
}

async function main() {
  const first = open('one');
  await until(first.provider, 'status', () => first.provider.wsconnected);
  first.text.insert(0, 'Hello');
  const second = open('one');
  const other = open('two');
  await until(second.doc, 'update', () => second.text.toString() === 'Hello');
  await until(second.provider, 'sync', () => second.provider.synced);
  console.log(second.text.toString());

  for (let i = 0; i < 200; i += 1) {
    first.text.insert(0, 'a');
    second.text.insert(second.text.length, 'b');
  }
  const expected = `${'a'.repeat(200)}Hello${'b'.repeat(200)}`;
  await Promise.all([first, second].map(({ doc, text }) => until(doc, 'update', () => text.toString() === expected)));
  console.log('same text');

  second.provider.awareness.setLocalState({ name: 'Ada' });
  const { awareness } = first.provider;
  await until(awareness, 'change', () => [...awareness.getStates().values()].some((state) => state.name === 'Ada'));
  console.log('Ada is there');
  console.log(`other document: '${other.text}'`);
  [first, second, other].forEach(({ provider }) => provider.destroy());
}

main().then(() => process.exit(0), (error) => { console.log(error); process.exit(1); });
