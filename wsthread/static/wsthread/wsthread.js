// A WebSocket that comes back, and gets what it has missed meanwhile.
//
//     import { Socket } from "/_wsthread/wsthread.js";
//     const socket = new Socket("/ws");
//     socket.onmessage = ({ data }) => show(data);
//     socket.onrecovered = ({ recovered }) => recovered || loadAnew();
//     socket.send("Hello");
//
// A module without dependencies, for browsers and Node.js. docs/resuming.rst of wsthread tells what goes over the wire,
// wsthread.d.ts has the types. All times are in milliseconds.

const SUBPROTOCOL = "wsthread.resume.v1";
const LINE_FEED = 10;
const OPTIONS = {
  protocols: [], // Subprotocols of the application.
  resume: true, // Whether to ask for what was missed; false for servers that are not wsthread's.
  firstDelay: 500, // The longest wait before the first attempt to come back; it doubles with each attempt,
  lastDelay: 15_000, // up to this,
  stableAfter: 10_000, // and starts anew after a connection that lasted this long.
  openTimeout: 10_000, // An attempt that takes longer has failed.
  maxQueued: 1 << 20, // Bytes that may wait to be sent; for text, characters.
  comesBack, // Whether to come back after a close code.
  WebSocket: globalThis.WebSocket,
};

/** Whether to come back after a close code: not when the server says that it would be the same again. */
export function comesBack(code) {
  return [1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015].includes(code);
}

/**
 * Like the browser's WebSocket, with events besides: "down" when the connection is lost and will come back, "recovered"
 * when it has, "dropped" for a message that could not be sent. "close" comes once, when it is over.
 */
export class Socket extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;

  #options;
  #url;
  #socket = null; // The connection, or the attempt at one.
  #timer; // The next attempt, or the end of this one.
  #attempts = 0; // Since the last stable connection.
  #openedAt = 0;
  #queue = [];
  #queued = 0;
  #seen = null; // The last number of each publisher.
  #isReturning = false;
  #isUpToDate = false; // Whether all that was missed has come on this connection.
  #hasLost = false; // Whether something that was missed will not come.
  #forget; // Ends listening to the page.

  constructor(url, options = {}) {
    super();
    this.#options = { ...OPTIONS, ...options };
    this.#options.protocols = [this.#options.protocols].flat();
    this.#url = url;
    this.readyState = Socket.CONNECTING;
    this.protocol = ""; // The subprotocol of the application.
    this.recovering = false; // Whether what was missed is still coming.
    this.#listenToPage();
    this.#connect();
  }

  /** The absolute address of the last attempt. */
  get url() {
    const given = typeof this.#url === "function" ? this.#url() : this.#url;
    const url = new URL(given, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws"); // And https becomes wss.
    return url.href;
  }

  /** Bytes that wait to be sent. */
  get bufferedAmount() {
    return this.#queued + (this.#socket?.bufferedAmount ?? 0);
  }

  /** Send a message, or let it wait for the connection. False if it was dropped, for too many wait. */
  send(data) {
    if (this.readyState === Socket.OPEN && this.#socket.readyState === Socket.OPEN) {
      this.#socket.send(data);
      return true;
    }
    const size = data.length ?? data.byteLength ?? data.size;
    if (this.readyState >= Socket.CLOSING || this.#queued + size > this.#options.maxQueued) {
      this.#tell("dropped", { data });
      return false;
    }
    this.#queue.push({ data, size });
    this.#queued += size;
    return true;
  }

  /** End it: no coming back. */
  close(code = 1000, reason = "") {
    if (this.readyState >= Socket.CLOSING) return;
    const wasOpen = this.readyState === Socket.OPEN;
    const socket = this.#socket;
    if (wasOpen) socket.close(code, reason); // It raises for a code that may not be sent.
    this.readyState = Socket.CLOSING;
    clearTimeout(this.#timer);
    if (wasOpen) {
      this.#timer = setTimeout(() => this.#end({ code: 1006, reason: "", wasClean: false }), this.#options.openTimeout);
    } else {
      this.#drop();
      setTimeout(() => this.#end({ code, reason, wasClean: false }));
    }
  }

  /** Give the connection up and come back at once, for whoever knows that it is dead or that its URL has changed. */
  reconnect() {
    if (this.readyState >= Socket.CLOSING) return;
    this.#attempts = 0;
    if (this.readyState === Socket.OPEN) this.#lose({ code: 1006, reason: "reconnect", wasClean: false }, 0);
    else this.#connect();
  }

  // The connection

  #connect() {
    this.#drop();
    const { protocols, resume, openTimeout, WebSocket } = this.#options;
    const socket = new WebSocket(this.url, resume ? [SUBPROTOCOL, ...protocols] : protocols);
    this.#socket = socket;
    this.#isReturning = this.#seen !== null;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      if (socket.protocol === SUBPROTOCOL) socket.send(JSON.stringify(this.#seen));
      else this.#open(socket.protocol);
    };
    socket.onmessage = ({ data }) => {
      if (socket.protocol === SUBPROTOCOL) this.#take(data);
      else this.#tell("message", { data });
    };
    socket.onclose = (event) => this.#closed(event);
    this.#timer = setTimeout(() => this.#closed({ code: 1006, reason: "timeout", wasClean: false }), openTimeout);
  }

  #open(protocol) {
    clearTimeout(this.#timer);
    this.protocol = protocol;
    this.readyState = Socket.OPEN;
    this.#openedAt = Date.now();
    this.#tell("open", { returning: this.#isReturning });
    while (this.#queue.length && this.readyState === Socket.OPEN) {
      const { data, size } = this.#queue.shift();
      this.#queued -= size;
      this.#socket.send(data);
    }
  }

  #closed({ code, reason, wasClean }) {
    const isWanted = this.readyState !== Socket.CLOSING && this.#options.comesBack(code, reason);
    if (isWanted) this.#lose({ code, reason, wasClean });
    else this.#end({ code, reason, wasClean });
  }

  // Wait a random time, so that the pages do not all come at once when the server is back ("full jitter").
  #lose(event, delay) {
    const { firstDelay, lastDelay, stableAfter } = this.#options;
    if (this.readyState === Socket.OPEN && Date.now() - this.#openedAt > stableAfter) this.#attempts = 0;
    this.#drop();
    this.readyState = Socket.CONNECTING;
    delay ??= Math.random() * Math.min(lastDelay, firstDelay * 2 ** this.#attempts++);
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.#tell("down", { ...event, delay });
  }

  #end(event) {
    this.#drop();
    if (this.readyState === Socket.CLOSED) return;
    this.readyState = Socket.CLOSED;
    this.#forget();
    for (const { data } of this.#queue.splice(0)) this.#tell("dropped", { data });
    this.#queued = 0;
    this.#tell("close", event);
  }

  #drop() {
    clearTimeout(this.#timer);
    this.recovering = false;
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null; // It may take its time to close.
      socket.onerror = () => {};
      socket.close();
    }
  }

  // What comes

  #take(data) {
    if (typeof data !== "string") {
      const bytes = new Uint8Array(data);
      const end = bytes.indexOf(LINE_FEED);
      this.#see(String.fromCharCode(...bytes.subarray(0, end)));
      this.#tell("message", { data: data.slice(end + 1) });
    } else if (data.startsWith("{")) {
      this.#notice(JSON.parse(data));
    } else {
      const end = data.indexOf("\n");
      this.#see(end < 0 ? data : data.slice(0, end));
      if (end >= 0) this.#tell("message", { data: data.slice(end + 1) });
    }
  }

  #see(mark) {
    if (!mark) return;
    const [publisher, number] = mark.split(":");
    this.#seen[publisher] = Number(number);
  }

  #notice({ seen, recovered, subprotocol }) {
    if (seen) this.#seen = seen;
    if (subprotocol !== undefined) {
      this.recovering = this.#isReturning;
      this.#isUpToDate = false;
      this.#open(subprotocol ?? "");
    }
    if (recovered === false && !this.#isUpToDate) {
      this.#hasLost = true; // To be told when it is up to date, even if that takes another connection.
    } else if (recovered === false) {
      this.#tell("recovered", { recovered });
    } else if (recovered) {
      const isNews = this.#isReturning;
      const hasLost = this.#hasLost;
      this.#isUpToDate = true;
      this.recovering = this.#hasLost = false;
      if (isNews) this.#tell("recovered", { recovered: !hasLost });
    }
  }

  #tell(type, values) {
    const event = Object.assign(new Event(type), values);
    this.dispatchEvent(event);
    this[`on${type}`]?.(event);
  }

  // The page

  #listenToPage() {
    const page = globalThis.window;
    if (!page?.addEventListener) {
      this.#forget = () => {};
      return;
    }
    const lose = (reason) => {
      const event = { code: 1006, reason, wasClean: false };
      if (this.readyState < Socket.CLOSING) this.#lose(event, this.#options.lastDelay);
    };
    const comeBack = () => {
      if (this.readyState === Socket.CONNECTING && !this.#socket) this.reconnect();
    };
    const listeners = [
      // Browsers are wrong at times, so it is tried now and then all the same.
      [page, "offline", () => lose("offline")],
      [page, "online", () => this.reconnect()], // Neither the wait nor the old connection is worth anything now.
      // A browser may keep a page that was left, with its connection, and lose that when it shows the page again. Until
      // then the server would take the page for one that is looked at.
      [page, "pagehide", ({ persisted }) => persisted && lose("pagehide")],
      [page, "pageshow", comeBack],
      // Browsers slow down the timers of pages that nobody sees.
      [page.document, "visibilitychange", () => page.document.visibilityState === "visible" && comeBack()],
    ];
    for (const [target, type, listener] of listeners) target.addEventListener(type, listener);
    this.#forget = () => {
      for (const [target, type, listener] of listeners) target.removeEventListener(type, listener);
    };
  }
}

/**
 * Who is there, for lists of objects with an "id" that the server sends: update(list) with each of them. Events "join",
 * "leave" and "change" tell of one "member" each, but for the first list.
 */
export class Members extends EventTarget {
  #members = null; // By id.

  update(list) {
    const before = this.#members;
    this.#members = new Map(list.map((member) => [member.id, member]));
    if (before === null) return;
    for (const [id, member] of before) if (!this.#members.has(id)) this.#tell("leave", member);
    for (const [id, member] of this.#members) {
      if (!before.has(id)) this.#tell("join", member);
      else if (JSON.stringify(before.get(id)) !== JSON.stringify(member)) this.#tell("change", member);
    }
  }

  get size() {
    return this.#members?.size ?? 0;
  }

  [Symbol.iterator]() {
    return (this.#members ?? new Map()).values();
  }

  #tell(type, member) {
    this.dispatchEvent(Object.assign(new Event(type), { member }));
  }
}
