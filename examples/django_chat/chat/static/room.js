// The page of a room: shows what the server sends, and comes back after every interruption.
// What other people wrote gets onto the page through textContent only, never as HTML.

const LOGGED_OUT = 4401;
const DELAY = 5_000; // The longest wait before the next attempt to connect, in milliseconds.

const $ = (id) => document.getElementById(id);
const url = new URL($("chat").dataset.socket, location.href);
url.protocol = url.protocol.replace("http", "ws"); // And https becomes wss.
let socket;

function connect() {
  socket = new WebSocket(url);
  socket.onopen = () => setStatus("Connected");
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    receive[event.type]?.(event);
  };
  socket.onclose = ({ code }) => (code === LOGGED_OUT ? leave() : retry());
}

async function retry() {
  setStatus("Reconnecting…");
  await new Promise((resolve) => setTimeout(resolve, Math.random() * DELAY));
  // A page is not told why a handshake was refused, so it asks whether it would be redirected to the login.
  const page = await fetch(location.href).catch(() => null);
  page?.redirected ? leave() : connect();
}

function leave() {
  setStatus("Logged out");
  location.reload();
}

function setStatus(text) {
  $("status").textContent = text;
}

// What the server sends, by its type

const receive = {
  online({ names }) {
    $("online").textContent = names.join(", ");
  },
  message({ id, name, text }) {
    const messages = [...$("messages").children];
    if (messages.some((item) => Number(item.dataset.id) === id)) return; // Seen before an interruption.
    const item = document.createElement("li");
    item.dataset.id = id;
    item.append(make("b", name), make("span", text));
    $("messages").insertBefore(item, messages.find((other) => Number(other.dataset.id) > id) ?? null);
    item.scrollIntoView({ block: "nearest" });
  },
};

function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || socket.readyState !== WebSocket.OPEN) return; // The text stays until it can be sent.
  socket.send(text);
  $("text").value = "";
});

addEventListener("pagehide", () => socket.close()); // Browsers keep pages, with their connections, for the Back button.
connect();
