/** What the browser client of syncrelay exports. */

export type TransportName = "websocket" | "sse";

/** Why the relay refused or ended a connection. */
export interface Reason {
  /** The close code; 0 or 1006 where there was none. */
  code: number;
  /** The name in the protocol's table of reasons; empty if it has none. */
  label: string;
  /** For people. */
  text: string;
}

/** An event, as the relay sends it. */
export interface RelayEvent<Data = unknown> {
  type: string;
  /** Ascends in the order of commits, and names this event for ever. */
  event_id: number;
  /** The cadet whom it is about, if it is about one. */
  cadet_id?: number;
  data: Data;
  /** RFC 3339, UTC. */
  timestamp: string;
}

export interface State {
  /**
   * - connecting: an attempt is under way
   * - open: connected; nothing that is committed from now on can be missed
   * - waiting: the next attempt comes at retryAt
   * - closed: for good, by close() or for the reason
   */
  readonly status: "connecting" | "open" | "waiting" | "closed";
  readonly transport: TransportName | null;
  /** Attempts that have failed in a row. */
  readonly attempt: number;
  /** When the next one comes, in milliseconds since 1970. */
  readonly retryAt: number | null;
  /** Why there is no connection; null while there is one. */
  readonly reason: Reason | null;
  /** What was missed meanwhile is still coming. */
  readonly catchingUp: boolean;
  /** Who the relay takes us for. */
  readonly userId: number | null;
  readonly role: string | null;
  readonly cadetId: number | null;
  readonly epoch: string | null;
  /** Connections that were open and have ended. */
  readonly reconnects: number;
  /** What the last ping took, in milliseconds. */
  readonly roundTrip: number | null;
}

/**
 * Events may have been missed, so state that was built from them must be fetched
 * anew. The connection stands when this is told: what is fetched from now on and
 * the events that come from now on leave no gap between them.
 *
 * - truncated: away for longer than the relay keeps events
 * - epoch_changed, unknown_position: the relay's log is not the one that we knew
 * - identity_changed: role or cadet has changed, and so what may be seen
 */
export interface Refetch {
  reason: "truncated" | "epoch_changed" | "unknown_position" | "identity_changed";
}

/** Why a token is wanted: "connect", "token_expiring", or the label of a reason. */
export interface TokenRequest {
  reason: string;
}

export interface Options {
  /** Where the relay is; default the page's own origin. A path is kept. */
  url?: string | URL;
  /**
   * The token, or a function that gets one. It is called for the first connection,
   * a minute before a token ends, and once after a token was refused; nothing in
   * answer gives up. When it throws, it is called again later.
   */
  token: string | ((request: TokenRequest) => string | null | undefined | Promise<string | null | undefined>);
  /** Begin after this event; 0 is the beginning of what is kept. Default: what storage has, else with what is new. */
  after?: number;
  /** Default auto: a WebSocket, and where none can be opened an event stream, until one can. */
  transport?: "auto" | TransportName;
  /** Show a one-time ticket in the URL instead of the token in a header. */
  tickets?: boolean;
  /** Keep the position here, over a reload of the page: sessionStorage. */
  storage?: Pick<Storage, "getItem" | "setItem">;
  /** Under this key; one for each user. Default "syncrelay". */
  storageKey?: string;
  /** The wait before the first and the longest wait before any attempt to come back; drawn at random below. In ms. */
  minDelay?: number;
  maxDelay?: number;
  /** How long a connection may take to be established, in ms. */
  connectTimeout?: number;
  /** When nothing has come on a WebSocket for so long it is pinged, and must answer within pongTimeout. In ms. */
  pingInterval?: number;
  pongTimeout?: number;
  /** An event stream on which nothing has come for so long is dead, in ms; three of the relay's heartbeats. */
  silence?: number;
  /** How long at most a WebSocket that could not be opened is not tried again, in ms. */
  webSocketRetry?: number;
  /** Where these are not global, as WebSocket in Node before 22. */
  WebSocket?: new (url: string, protocols?: string[]) => WebSocket;
  fetch?: typeof fetch;
}

/** Each of these takes a listener off again. */
export type Off = () => void;

export interface RelayError extends Error {
  /** The close code, if a connection ended. */
  code?: number;
  label?: string;
}

export interface Relay {
  readonly state: State;
  /** The ID of the event up to which everything was handed out. */
  readonly cursor: number | undefined;
  readonly counts: {
    /** Events handed out. */
    readonly received: number;
    /** Events that came again and were not. */
    readonly duplicates: number;
    /** Of those received, events that replays and resumes brought. */
    readonly replayed: number;
  };
  /** Events of a type, in order, each once. */
  on<Data = unknown>(type: string, listener: (event: RelayEvent<Data>) => void): Off;
  /** Events of all types, after those who asked for the type. */
  onEvent(listener: (event: RelayEvent) => void): Off;
  onState(listener: (state: State) => void): Off;
  onRefetch(listener: (notice: Refetch) => void): Off;
  /** What went wrong; unless the state says closed, it goes on. */
  onError(listener: (error: RelayError) => void): Off;
  /** Has everything after an event handed out again; 0 is the beginning of what is kept. */
  replay(after: number): void;
  /** Breaks the connection as a network would; it comes back by itself. */
  interrupt(): void;
  /** Ends it for good. */
  close(): void;
}

/** Connects, and stays connected until close(). Listeners that are added at once miss nothing. */
export function connect(options: Options): Relay;

/** The protocol's table of reasons: close code and text, by label. */
export const REASONS: Readonly<Record<string, readonly [code: number, text: string]>>;
