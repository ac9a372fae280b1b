// The page of the chat: asks for a name, shows what the server sends, and comes back after every interruption.
// What other people wrote gets onto the page through textContent only, never as HTML.

import { Members, Socket } from "wsthread";

const PATIENCE = 10_000; // Milliseconds. The server answers within this time, or the connection is taken for dead.
const LOG_LENGTH = 500; // Older messages leave the page.

const $ = (id) => document.getElementById(id);
const unconfirmed = new Map(); // The texts that the server has not sent back yet, by their id, in order.
let who; // Name and room.
let members;
let socket;
let timer; // The end of the patience.

// The connection

function connect() {
  setStatus("connecting", "Connecting…");
  members = new Members();
  members.addEventListener("join", ({ member }) => addNote(`${member.name} joined`));
  members.addEventListener("leave", ({ member }) => addNote(`${member.name} left`));
  socket = new Socket(`ws?${new URLSearchParams(who)}`);
  socket.onopen = ({ returning }) => {
    if (returning) {
      setStatus("recovering", "Catching up…");
    } else {
      addNote(`${who.name} joined`);
      beConnected();
    }
  };
  socket.onrecovered = ({ recovered }) => {
    addNote(recovered ? "You are back, and have missed nothing." : "You are back. Some of what was said is missing here.");
    beConnected();
  };
  socket.onmessage = ({ data }) => {
    clearTimeout(timer);
    const event = JSON.parse(data);
    receive[event.type]?.(event);
  };
  socket.ondown = ({ delay }) => {
    clearTimeout(timer);
    setStatus("disconnected", delay < 1000 ? "Reconnecting…" : `Reconnecting in ${Math.round(delay / 1000)} s`);
  };
  socket.onclose = ({ reason }) => askName(reason);
}

function beConnected() {
  setStatus("connected", "Connected");
  unconfirmed.forEach(transmit); // What came back meanwhile is none of them any more.
}

// A browser does not notice by itself when the other end has vanished.
function expectAnswer() {
  clearTimeout(timer);
  timer = setTimeout(() => socket.reconnect(), PATIENCE);
}

function transmit(text, id) {
  socket.send(JSON.stringify({ id, text }));
  expectAnswer();
}

function send(text) {
  const id = `${Date.now()}-${Math.random()}`;
  unconfirmed.set(id, text);
  showUnconfirmed();
  if (document.body.dataset.state === "connected") transmit(text, id); // Otherwise when it is.
}

// What the server sends, by its type

const receive = {
  members({ members: list }) {
    members.update(list);
    showOnline(list.map((member) => member.name));
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
  clearTimeout(timer);
  $("refusal").textContent = refusal;
  $("chat").hidden = true;
  $("join").hidden = false;
  $("name").focus();
}

$("join").onsubmit = (event) => {
  event.preventDefault();
  who = { name: $("name").value, room: $("room").value };
  $("title").textContent = who.room;
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
