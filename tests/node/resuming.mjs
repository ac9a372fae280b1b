// What wsthread.js does, told line by line: node --experimental-websocket resuming.mjs ws://127.0.0.1:8000 SCRIPT
// Each step of the script is a word: what to do, or what to wait for.
import { Members, Socket, comesBack } from "../../wsthread/static/wsthread/wsthread.js";

const [base, ...steps] = process.argv.slice(2);
const got = [];
let wake = () => {};
let socket;

function note(...parts) {
  console.log(parts.join(" "));
  got.push(parts[0]);
  wake();
}

function open(path, options = {}) {
  socket = new Socket(base + path, { firstDelay: 50, lastDelay: 200, ...options });
  socket.onopen = ({ returning }) => note("open", returning, socket.protocol || "-");
  socket.onmessage = ({ data }) => note("message", typeof data === "string" ? data : Buffer.from(data).toString("hex"));
  socket.addEventListener("recovered", ({ recovered }) => note("recovered", recovered));
  socket.ondown = ({ code, delay }) => note("down", code, delay <= 200);
  socket.ondropped = ({ data }) => note("dropped", data);
  socket.onclose = ({ code, reason }) => note("close", code, reason || "-");
}

// Wait until so many events of a type have come since the last wait for it.
const waited = {};
async function wait(type, count = 1) {
  waited[type] = (waited[type] ?? 0) + count;
  while (got.filter((one) => one === type).length < waited[type]) {
    await new Promise((resolve) => (wake = resolve));
  }
}

const actions = {
  open: (path, protocols) => open(path, protocols ? { protocols: protocols.split(",") } : {}),
  plain: (path) => open(path, { resume: false }),
  small: (path) => open(path, { maxQueued: 6 }),
  impatient: (path) => open(path, { openTimeout: 100 }),
  send: (text) => console.log("sent", socket.send(text)),
  bytes: (hex) => socket.send(Buffer.from(hex, "hex")),
  get: async (path) => (await fetch(base.replace("ws", "http") + path)).text(),
  reconnect: () => socket.reconnect(),
  finish: (code) => socket.close(code ? Number(code) : undefined),
  state: () => console.log("state", socket.readyState, socket.bufferedAmount, socket.recovering),
  wait: (type, count) => wait(type, Number(count ?? 1)),
  codes: () => console.log("codes", [1000, 1001, 1006, 1008, 1011, 1012, 1013, 3000, 4000].filter(comesBack).join()),
  members: () => {
    const members = new Members();
    for (const type of ["join", "leave", "change"]) {
      members.addEventListener(type, ({ member }) => console.log(type, JSON.stringify(member)));
    }
    members.update([{ id: "1", name: "Ada" }]);
    members.update([{ id: "1", name: "Ada" }, { id: "2", name: "Bob" }]);
    members.update([{ id: "2", name: "Bobby" }]);
    console.log("members", members.size, JSON.stringify([...members]));
  },
};

for (const step of steps) {
  const [name, ...args] = step.split(" ");
  await actions[name](...args);
}
process.exit(0);
