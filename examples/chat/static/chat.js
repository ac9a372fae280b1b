// The page of the chat: asks for a name, shows what the server sends, and comes back after every interruption.
// What other people wrote gets onto the page through textContent only, never as HTML.

// In milliseconds.
const FIRST_DELAY = 500; // The longest wait before the first attempt to reconnect; it doubles with each attempt,
const LAST_DELAY = 15_000; // up to this,
const STABLE = 10_000; // and starts anew after a connection that lasted this long.
const PATIENCE = 10_000; // The server answers within this time, or the connection is taken for dead.

const LOG_LENGTH = 500; // Older messages leave the page.

const $ = (id) => document.getElementById(id);
const unconfirmed = new Map(); // The texts that the server has not sent back yet, by their id, in order.
let myName;
let socket;
let timer; // The next attempt while disconnected, else the end of the patience.
let attempts = 0; // Since the last stable connection.
let opened = 0; // When the connection opened; 0 while disconnected.
let connections = 0; // Since the user joined.

// The connection

function connect() {
  drop();
  setStatus("connecting", "Connecting…");
  expectAnswer();
  const url = new URL(`ws?${new URLSearchParams({ name: myName })}`, location.href);
  url.protocol = url.protocol.replace("http", "ws"); // And https becomes wss.
  socket = new WebSocket(url);
  socket.onopen = () => {
    opened = performance.now();
    setStatus("connected", "Connected");
    if (connections++) addNote("You are back. What was said meanwhile is not shown here.");
    unconfirmed.forEach(transmit);
  };
  socket.onmessage = ({ data }) => {
    clearTimeout(timer);
    const event = JSON.parse(data);
    receive[event.type]?.(event);
  };
  socket.onclose = ({ code, reason }) => (code === 1008 ? askName(reason) : reconnect());
}

// Wait a random time, so that the pages do not all come at once when the server is back ("full jitter").
function reconnect() {
  if (opened && performance.now() - opened > STABLE) attempts = 0;
  drop();
  const delay = Math.random() * Math.min(LAST_DELAY, FIRST_DELAY * 2 ** attempts++);
  setStatus("disconnected", delay < 1000 ? "Reconnecting…" : `Reconnecting in ${Math.round(delay / 1000)} s`);
  timer = setTimeout(connect, delay);
}

function drop() {
  clearTimeout(timer);
  opened = 0;
  if (socket) {
    socket.onopen = socket.onmessage = socket.onclose = null; // It may take its time to close.
    socket.close();
  }
}

// A browser does not notice by itself when the other end has vanished.
function expectAnswer() {
  clearTimeout(timer);
  timer = setTimeout(reconnect, PATIENCE);
}

function transmit(text, id) {
  socket.send(JSON.stringify({ id, text }));
  expectAnswer();
}

function send(text) {
  const id = `${Date.now()}-${Math.random()}`;
  unconfirmed.set(id, text);
  showUnconfirmed();
  if (opened) transmit(text, id); // Otherwise when it opens.
}

// What the server sends, by its type

const receive = {
  join({ name, online }) {
    addNote(`${name} joined`);
    showOnline(online);
  },
  leave({ name, online }) {
    addNote(`${name} left`);
    showOnline(online);
  },
  message({ id, name, text }) {
    const own = unconfirmed.delete(id);
    showUnconfirmed();
    addMessage(id, name, text, own);
  },
  error({ id, text }) {
    unconfirmed.delete(id);
    showUnconfirmed();
    addNote(text);
  },
};

// What the page shows

function setStatus(state, text) {
  document.body.dataset.state = state;
  $("status").textContent = text;
}

function addMessage(id, name, text, own) {
  if ($(`m-${id}`)) return; // Sent again, because its sender was cut off before it came back.
  const byline = make("p", "byline");
  const time = new Date().toLocaleTimeString([], { timeStyle: "short" });
  byline.append(colored(make("bdi", "", name)), make("time", "", time));
  const item = make("li", own ? "message own" : "message");
  item.id = `m-${id}`;
  item.append(byline, make("p", "", text));
  add(item);
}

function addNote(text) {
  add(make("li", "note", text));
}

function add(item) {
  const { scrollTop, clientHeight, scrollHeight } = $("scroll");
  $("messages").append(item);
  if ($("messages").childElementCount > LOG_LENGTH) $("messages").firstChild.remove();
  if (scrollTop + clientHeight > scrollHeight - 50) scrollToEnd(); // Unless one has scrolled back to read.
}

function showUnconfirmed() {
  const texts = Array.from(unconfirmed.values());
  $("unconfirmed").replaceChildren(...texts.map((text) => make("li", "message own", text)));
}

function showOnline(names) {
  $("count").textContent = names.length;
  $("online").replaceChildren(...names.map((name) => colored(make("li", "", name))));
}

function scrollToEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

// Give everybody a color of their own, the same on all pages.
function colored(element) {
  const hue = Array.from(element.textContent).reduce((sum, char) => (sum * 37 + char.codePointAt(0)) % 360, 0);
  element.style.setProperty("--hue", hue);
  return element;
}

// What the user does

function askName(refusal) {
  drop();
  connections = 0;
  $("refusal").textContent = refusal;
  $("chat").hidden = true;
  $("join").hidden = false;
  $("name").focus();
}

$("join").onsubmit = (event) => {
  event.preventDefault();
  myName = $("name").value;
  $("join").hidden = true;
  $("chat").hidden = false;
  $("text").focus();
  connect();
};

$("compose").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  send(text);
  $("text").value = "";
  scrollToEnd();
};

// The network is back or has changed: neither the wait nor the old connection is worth anything now.
window.addEventListener("online", () => {
  if ($("chat").hidden) return;
  attempts = 0;
  connect();
});
