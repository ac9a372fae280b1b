/** The types of wsthread.js. All times are in milliseconds. */

export type Data = string | ArrayBufferLike | Blob | ArrayBufferView;

export interface SocketOptions {
  /** Subprotocols of the application. Default: none. */
  protocols?: string | string[];
  /** Whether to ask for what was missed; false for servers that are not wsthread's. Default: true. */
  resume?: boolean;
  /** The longest wait before the first attempt to come back; it doubles with each attempt. Default: 500. */
  firstDelay?: number;
  /** The longest wait before any attempt. Default: 15,000. */
  lastDelay?: number;
  /** The waits start anew after a connection that lasted this long. Default: 10,000. */
  stableAfter?: number;
  /** An attempt that takes longer has failed. Default: 10,000. */
  openTimeout?: number;
  /** Bytes that may wait to be sent; for text, characters. Default: 1 MiB. */
  maxQueued?: number;
  /** Whether to come back after a close code. */
  comesBack?: (code: number, reason: string) => boolean;
  /** For Node.js before version 22. Default: the global one. */
  WebSocket?: unknown;
}

export interface CloseInfo extends Event {
  code: number;
  reason: string;
  wasClean: boolean;
}

export interface SocketEvents {
  /** The connection is there; `returning` tells whether it was there before. */
  open: Event & { returning: boolean };
  /** A message; binary ones are ArrayBuffers. */
  message: Event & { data: string | ArrayBuffer };
  /** All that was missed has come, or, when false, what was missed is not known: load the state anew. */
  recovered: Event & { recovered: boolean };
  /** The connection is lost and will come back after the delay. */
  down: CloseInfo & { delay: number };
  /** A message was not sent, because too many wait or because it is over. */
  dropped: Event & { data: Data };
  /** It is over, and does not come back. */
  close: CloseInfo;
}

export declare function comesBack(code: number): boolean;

export declare class Socket extends EventTarget {
  static readonly CONNECTING: 0;
  static readonly OPEN: 1;
  static readonly CLOSING: 2;
  static readonly CLOSED: 3;

  /** @param url absolute, or relative to the page; a function is asked before each attempt. */
  constructor(url: string | URL | (() => string | URL), options?: SocketOptions);

  readonly url: string;
  readonly protocol: string;
  readonly readyState: 0 | 1 | 2 | 3;
  readonly recovering: boolean;
  readonly bufferedAmount: number;

  send(data: Data): boolean;
  close(code?: number, reason?: string): void;
  reconnect(): void;

  onopen?: ((event: SocketEvents["open"]) => void) | null;
  onmessage?: ((event: SocketEvents["message"]) => void) | null;
  onrecovered?: ((event: SocketEvents["recovered"]) => void) | null;
  ondown?: ((event: SocketEvents["down"]) => void) | null;
  ondropped?: ((event: SocketEvents["dropped"]) => void) | null;
  onclose?: ((event: SocketEvents["close"]) => void) | null;

  addEventListener<K extends keyof SocketEvents>(
    type: K, listener: (event: SocketEvents[K]) => void, options?: boolean | AddEventListenerOptions): void;
}

export interface Member {
  id: string;
}

export declare class Members<M extends Member = Member> extends EventTarget implements Iterable<M> {
  readonly size: number;
  update(list: M[]): void;
  [Symbol.iterator](): Iterator<M>;
  addEventListener(
    type: "join" | "leave" | "change", listener: (event: Event & { member: M }) => void,
    options?: boolean | AddEventListenerOptions): void;
}
