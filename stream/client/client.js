// The browser's side of syncrelay: one module, no dependency. It keeps one
// connection, by WebSocket or, where that can't be opened, by an event stream over
// fetch; comes back by itself, after the event that it handed out last; and hands
// each event out once, in order. client.d.ts has the types, README.md the guide,
// ../README.md the protocol.
//
// From here on: the reasons, the defaults, Relay (what an application uses, the life of
// a connection, what the relay sends, signs of life, tokens, the position), and below it
// the two kinds of connections, Socket and EventStream.

/**
 * Why the relay refuses or ends a connection: the close code and the text that a
 * WebSocket gets, by the code that an HTTP answer or an error event has. A test of
 * the relay's holds this table to its own.
 */
export const REASONS = Object.freeze({
  no_token: [4001, "no token"],
  invalid_token: [4001, "invalid token"],
  not_approved: [4001, "user not approved"],
  unknown_user: [4001, "user not known here"],
  origin_forbidden: [0, "this origin is not allowed"],
  bad_request: [0, "this request can't be answered"],
  unavailable: [1013, "the relay can't serve now: try again later"],
  too_many_connections: [1013, "too many connections: try again later"],
  too_many_connections_of_ip: [1013, "too many connections from this address"],
  too_many_connections_of_user: [1013, "too many connections of this user"],
  connecting_too_fast: [1013, "too many new connections from this address: try again later"],
  too_many_failed_tokens: [1013, "too many bad tokens from this address: try again later"],
  too_many_replays: [1013, "too many replays: try again later"],
  token_expired: [4001, "token expired"],
  restarting: [1012, "the relay is restarting: reconnect"],
  internal_error: [4000, "internal error"],
  session_revoked: [4001, "session revoked"],
  new_epoch: [1012, "earlier event IDs can't be compared any more: reconnect"],
  identity_changed: [4001, "role or cadet has changed: reconnect"],
  other_user: [4001, "the new token is another user's"],
  too_many_messages: [1008, "too many messages"],
  malformed_messages: [1008, "malformed messages"],
  message_too_large: [1009, "the message is too long"],
  invalid_utf8: [1007, "a text message must be UTF-8"],
  protocol_error: [1002, "not as RFC 6455 wants it"],
});

const UNAUTHORIZED = 4001;
const BUSY = 1013;
const LOST = 1006; // the connection broke, or never came about
const OUR_FAULT = [1002, 1003, 1007, 1008, 1009]; // close codes that blame the client

/** The reason of a close frame: its text begins with that of a row of the table. */
function reasonOfClose(code, text) {
  for (const [label, [ofCode, ofText]] of Object.entries(REASONS)) {
    if (code === ofCode && text.startsWith(ofText)) return { code, label, text };
  }
  return { code, label: code === LOST ? "lost" : "", text };
}

/** The reason of an HTTP answer or an error event. */
function reasonOfLabel(label, text, status = 0) {
  const [code] = REASONS[label] ?? [status === 401 || status === 403 ? UNAUTHORIZED : LOST];
  return { code, label, text };
}

const DEFAULTS = {
  token: undefined,
  after: undefined,
  transport: "auto",
  tickets: false,
  storage: undefined,
  storageKey: "syncrelay",
  minDelay: 1000,
  maxDelay: 30_000,
  connectTimeout: 10_000,
  pingInterval: 25_000,
  pongTimeout: 10_000,
  silence: 45_000,
  webSocketRetry: 300_000,
};

/** How long a connection must have lasted for the next failure to be the first again. */
const STABLE = 5000;

/** The longest message that the relay takes by default, in bytes. */
const LONGEST_MESSAGE = 4096;

/**
 * Connects, and stays connected until close().
 * @param {import("./client.js").Options} [options]
 * @returns {import("./client.js").Relay}
 */
export function connect(options) {
  return new Relay(options);
}

// ---- the client

class Relay {
  #options;
  #base;
  #mayUseBoth;
  #listeners = new Map(); // event type -> Set of functions
  #observers = { event: new Set(), state: new Set(), refetch: new Set(), error: new Set() };
  /** @type {import("./client.js").State} */
  #state = Object.freeze({
    status: "connecting", transport: null, attempt: 0, retryAt: null, reason: null, catchingUp: false,
    userId: null, role: null, cadetId: null, epoch: null, reconnects: 0, roundTrip: null,
  });
  #counts = { received: 0, duplicates: 0, replayed: 0 };

  #cursor; // the ID of the event handed out last; undefined until one is known
  #resuming = null; // what the present connection asked to resume after, until that is answered
  #replays = []; // replays that were asked for and are not complete
  #head = 0; // the newest event when the present connection was established
  #noticed = false; // the application was told to refetch, on this connection
  #changed = false; // role or cadet have changed, which the application is to be told

  #token; // the present token, undefined if another must be got
  #why = "connect"; // why the next token is wanted
  #refused = 0; // refusals of a token since a connection was established

  #link = null; // the present connection
  #turn = 0; // counts attempts, so that what belongs to an old one is known
  #failures = 0; // attempts that failed in a row
  #openedAt = 0;
  #useStream = false; // a WebSocket could not be opened
  #timers = new Map(); // by name
  #unsaved = false;

  constructor(options = {}) {
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    this.#options = { WebSocket: globalThis.WebSocket, fetch: globalThis.fetch?.bind(globalThis), url: globalThis.location?.origin, ...DEFAULTS, ...given };
    const { url, transport, after, token } = this.#options;
    if (!["auto", "websocket", "sse"].includes(transport)) throw new TypeError(`transport is ${JSON.stringify(transport)}; allowed are "auto", "websocket" and "sse"`);
    if (transport === "websocket" && !this.#options.WebSocket) throw new TypeError("there is no WebSocket here; give one as the option WebSocket");
    if (after !== undefined && !isEventID(after)) throw new TypeError(`after is ${JSON.stringify(after)}; allowed are whole numbers from 0`);
    if (typeof token !== "string" && typeof token !== "function") throw new TypeError("token must be a text, or a function that gives one");
    if (!url) throw new TypeError("url is missing, and there is no page whose origin it could be");
    this.#mayUseBoth = transport === "auto" && this.#options.WebSocket !== undefined;
    this.#base = new URL(url, globalThis.location?.href);
    if (!this.#base.pathname.endsWith("/")) this.#base.pathname += "/";
    this.#useStream = transport === "sse" || !this.#options.WebSocket;
    this.#restore();
    this.#cursor ??= after;
    this.#hearThePage("addEventListener");
    queueMicrotask(() => this.#state.status !== "closed" && this.#dial()); // once handlers are there
  }

  // ---- what an application uses

  get state() { return this.#state; }
  get cursor() { return this.#cursor; }
  get counts() { return { ...this.#counts }; }

  on(type, listener) {
    const set = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, set.add(listener));
    return () => set.delete(listener);
  }
  onEvent(listener) { return this.#observe("event", listener); }
  onState(listener) { return this.#observe("state", listener); }
  onRefetch(listener) { return this.#observe("refetch", listener); }
  onError(listener) { return this.#observe("error", listener); }

  /** Has everything after an event handed out again; 0 is the beginning of what is kept. */
  replay(after) {
    if (!isEventID(after)) throw new TypeError(`a replay after ${JSON.stringify(after)} was asked for; allowed are whole numbers from 0`);
    if (this.#state.status === "closed") return;
    if (this.#link?.send && this.#state.status === "open" && this.#resuming === null) {
      this.#replays.push({ after, begun: false });
      this.#link.send({ type: "replay_request", last_event_id: after });
      return;
    }
    this.#cursor = after;
    this.#restart();
  }

  /** Breaks the connection as a network would; it comes back by itself. */
  interrupt() {
    this.#link?.end({ code: LOST, label: "interrupted", text: "interrupted by the application" });
  }

  close() { this.#finish({ code: 1000, label: "closed", text: "closed by the application" }); }

  // ---- telling the application

  #observe(kind, listener) {
    this.#observers[kind].add(listener);
    return () => this.#observers[kind].delete(listener);
  }

  #tell(kind, value) {
    for (const listener of [...this.#observers[kind]]) this.#call(listener, value);
  }

  /** A listener's fault is reported, and keeps nothing from the others. */
  #call(listener, value) {
    try {
      listener(value);
    } catch (error) {
      if (globalThis.reportError) globalThis.reportError(error);
      else queueMicrotask(() => { throw error; });
    }
  }

  #set(change) {
    this.#state = Object.freeze({ ...this.#state, ...change });
    this.#tell("state", this.#state);
  }

  #fail(error) {
    this.#tell("error", error instanceof Error ? error : Object.assign(new Error(error.text), { code: error.code, label: error.label }));
  }

  /** Says, once a connection, that events may be missing. */
  #refetch(reason) {
    if (this.#noticed) return;
    this.#noticed = true;
    this.#tell("refetch", { reason });
  }

  // ---- the life of a connection

  /** Tries to connect, now. */
  async #dial() {
    const turn = ++this.#turn;
    this.#disarm();
    this.#set({ status: "connecting", transport: this.#useStream ? "sse" : "websocket", attempt: this.#failures, retryAt: null });
    const hear = {
      message: (m) => turn === this.#turn && this.#message(m),
      alive: () => { if (turn === this.#turn) this.#disarm("pong"), this.#listen(); },
      ended: (reason) => turn === this.#turn && this.#ended(reason),
    };
    let token;
    try {
      token = await this.#getToken();
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#fail(new Error("no token could be got", { cause: error }));
      this.#retry({ code: LOST, label: "", text: "no token could be got" });
      return;
    }
    if (turn !== this.#turn) return;
    if (!token) {
      this.#finish(reasonOfLabel("no_token", REASONS.no_token[1]));
      return;
    }
    this.#resuming = this.#cursor ?? null;
    this.#replays = [];
    const request = { base: this.#base, token, after: this.#cursor, options: this.#options, hear };
    this.#link = (this.#useStream ? new EventStream(request) : new Socket(request)).start();
    this.#arm("connect", this.#options.connectTimeout, () => this.#link.end({ code: LOST, label: "lost", text: "the relay did not answer" }));
  }

  /** Connects anew at once, because something has changed. */
  #restart() {
    this.#link?.drop();
    this.#link = null;
    this.#dial();
  }

  #established(m) {
    this.#disarm("connect");
    const { epoch } = this.#state;
    this.#refused = 0;
    this.#openedAt = Date.now();
    if (!m.renewed) {
      this.#noticed = false;
      this.#why = "connect";
      this.#head = m.last_event_id;
      if (this.#cursor === undefined) this.#moveTo(m.last_event_id);
      this.#set({ status: "open", retryAt: null, reason: null, catchingUp: this.#resuming !== null, userId: m.user_id, role: m.role, cadetId: m.cadet_id ?? null, epoch: m.epoch });
      if (this.#useStream && this.#mayUseBoth) this.#probeLater();
      this.#listen();
      this.#ping();
    } else {
      this.#set({ userId: m.user_id, role: m.role, cadetId: m.cadet_id ?? null, epoch: m.epoch });
    }
    if (epoch !== null && epoch !== m.epoch) this.#refetch("epoch_changed");
    if (this.#changed) this.#refetch("identity_changed");
    this.#changed = false;
    this.#unsaved = true;
    this.#saveSoon();
  }

  /** The connection has ended, or did not come about. */
  #ended(reason) {
    const opened = this.#state.status === "open";
    this.#link = null;
    this.#disarm();
    if (opened && Date.now() - this.#openedAt >= STABLE) this.#failures = 0;
    // What a replay had not begun to bring is asked for again by resuming there.
    const waiting = this.#replays.find((r) => !r.begun);
    if (waiting) this.#cursor = waiting.after;
    if (opened) this.#state = { ...this.#state, reconnects: this.#state.reconnects + 1 }; // told with what comes next
    if (OUR_FAULT.includes(reason.code) || reason.label === "origin_forbidden") this.#fail(reason);

    if (reason.label === "identity_changed") {
      this.#changed = true;
      this.#retry(reason);
    } else if (reason.code === UNAUTHORIZED) {
      this.#refused++;
      if (this.#refused > 1 || typeof this.#options.token === "string") {
        this.#finish(reason);
        return;
      }
      this.#token = undefined;
      this.#why = reason.label || "refused";
      this.#retry(reason, 0);
    } else if (!opened && !this.#useStream && reason.code === LOST && this.#mayUseBoth) {
      // Perhaps something on the way lets no WebSocket through.
      this.#useStream = true;
      this.#dial();
    } else {
      // An event stream did not come about either: a WebSocket is tried first again.
      if (!opened && this.#mayUseBoth) this.#useStream = false;
      if (reason.code === BUSY) this.#failures = Math.max(this.#failures, 2);
      this.#retry(reason);
    }
  }

  /** Comes back later: after a time drawn from the whole of an interval that doubles. */
  #retry(reason, longest = Math.min(this.#options.maxDelay, this.#options.minDelay * 2 ** Math.min(this.#failures, 20))) {
    const delay = (this.#failures > 0 && longest === 0 ? this.#options.minDelay : longest) * Math.random() + (reason.retryAfter ?? 0) * 1000;
    this.#failures++;
    this.#set({ status: "waiting", attempt: this.#failures, retryAt: Date.now() + delay, reason, catchingUp: false, roundTrip: null });
    if (this.#state.status === "waiting") this.#arm("retry", delay, () => this.#dial());
  }

  /** Ends it for good. */
  #finish(reason) {
    if (this.#state.status === "closed") return;
    this.#turn++;
    this.#disarm();
    this.#link?.drop();
    this.#link = null;
    this.#save();
    this.#hearThePage("removeEventListener");
    this.#set({ status: "closed", retryAt: null, reason, catchingUp: false, roundTrip: null });
    if (reason.code !== 1000) this.#fail(reason);
  }

  /** What a page knows of better times, and of its end; elsewhere there is no page. */
  #hearThePage(does) {
    globalThis[does]?.("online", this.#wake);
    globalThis[does]?.("pagehide", this.#save);
    globalThis.document?.[does]("visibilitychange", this.#wake);
  }

  /** The network is back, or somebody is looking again. */
  #wake = () => {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.#state.status === "waiting") this.#dial();
    else if (this.#state.status === "open") this.#ping();
  };

  #probes = 0; // that failed in a row
  #probeLater() {
    // Soon at first: perhaps the relay was only just starting.
    this.#arm("websocket", Math.min(this.#options.webSocketRetry, STABLE * 2 ** Math.min(this.#probes++, 20)), () => this.#probe());
  }

  /** Looks whether a WebSocket can be opened by now, beside the event stream that is there. */
  async #probe() {
    const turn = this.#turn;
    const settle = (works) => {
      if (turn !== this.#turn) return;
      this.#disarm("probe");
      probe.drop();
      if (!works) {
        this.#probeLater();
        return;
      }
      this.#probes = 0;
      this.#useStream = false;
      this.#restart();
    };
    const hear = { message: (m) => m.type === "connection_established" && settle(true), alive() {}, ended: () => settle(false) };
    const token = await this.#getToken().catch(() => undefined);
    if (turn !== this.#turn || !token) return;
    const probe = new Socket({ base: this.#base, token, options: this.#options, hear }).start();
    this.#arm("probe", this.#options.connectTimeout, () => settle(false));
  }

  // ---- what the relay sends

  #message(m) {
    if (m.event_id !== undefined) return this.#event(m);
    switch (m.type) {
      case "connection_established": return this.#established(m);
      case "replay_complete": return this.#replayed(m);
      case "token_expiring": return this.#renew(m.expires_in);
      case "pong": return this.#set({ roundTrip: Date.now() - m.timestamp });
      case "error": return this.#refusedRequest(m);
      default: // of a later version
    }
  }

  /** Hands an event out, unless it was handed out already. */
  #event(m) {
    if (this.#cursor !== undefined && m.event_id <= this.#cursor) {
      // Only a replay moves the stream back, and only where it begins.
      const replay = this.#replays[0];
      if (!replay || replay.begun || m.event_id <= replay.after) {
        this.#counts.duplicates++;
        return;
      }
      replay.begun = true;
    }
    this.#counts.received++;
    this.#moveTo(m.event_id);
    for (const listener of [...(this.#listeners.get(m.type) ?? [])]) this.#call(listener, m);
    this.#tell("event", m);
  }

  #replayed(m) {
    if (this.#resuming === null) this.#replays.shift();
    this.#resuming = null;
    this.#counts.replayed += m.count;
    this.#moveTo(m.last_event_id);
    if (m.truncated) this.#refetch("truncated");
    this.#set({ catchingUp: false });
  }

  #refusedRequest(m) {
    const unknown = m.code === "invalid_last_event_id" || m.code === "epoch_changed";
    if (unknown && this.#resuming !== null) {
      // Our position is none of this log's: the stream goes on from its newest event.
      this.#resuming = null;
      this.#cursor = this.#head;
      this.#refetch("unknown_position");
      this.#set({ catchingUp: false });
      return;
    }
    if (unknown || m.code === "too_many_requests") this.#replays.shift();
    if (m.code === "epoch_changed") this.#refetch("epoch_changed");
    if (m.code === "unavailable") this.#arm("renew", 5000, () => this.#sendToken());
    this.#fail({ code: 0, label: m.code, text: m.message });
  }

  // ---- is it still there?

  /** Something has come: the next sign of life is due later. */
  #listen() {
    if (this.#link?.send) this.#arm("ping", this.#options.pingInterval, () => this.#ping());
    else this.#arm("ping", this.#options.silence, () => this.#silent());
  }

  #ping() {
    if (!this.#link?.send) return;
    this.#link.send({ type: "ping", timestamp: Date.now() });
    this.#arm("pong", this.#options.pongTimeout, () => this.#silent());
  }

  #silent() { this.#link?.end({ code: LOST, label: "silent", text: "the relay has fallen silent" }); }

  // ---- tokens

  async #getToken() {
    const { token } = this.#options;
    if (typeof token === "string") return token;
    if (this.#token === undefined || expired(this.#token)) this.#token = (await token({ reason: this.#why })) || undefined;
    return this.#token;
  }

  /** The token ends in so many seconds: another is got, and shown without a new connection where that can be. */
  async #renew(left) {
    if (typeof this.#options.token === "string") return; // there is no other
    const turn = this.#turn;
    try {
      const token = await this.#options.token({ reason: "token_expiring" });
      if (turn !== this.#turn || !token || token === this.#token) return;
      this.#token = token;
      this.#sendToken();
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#fail(new Error("no token could be got", { cause: error }));
      const wait = Math.max(left / 4, 2);
      if (left > wait) this.#arm("renew", wait * 1000, () => this.#renew(left - wait));
    }
  }

  #sendToken() {
    const message = { type: "auth", token: this.#token };
    if (this.#link?.send && JSON.stringify(message).length <= LONGEST_MESSAGE) this.#link.send(message);
    else this.#restart();
  }

  // ---- the position

  #moveTo(id) {
    this.#cursor = id;
    this.#unsaved = true;
    this.#saveSoon();
  }

  #saveSoon() {
    if (this.#options.storage && !this.#timers.has("save")) this.#arm("save", 250, this.#save);
  }

  #save = () => {
    this.#disarm("save");
    if (!this.#options.storage || !this.#unsaved) return;
    this.#unsaved = false;
    try {
      this.#options.storage.setItem(this.#options.storageKey, JSON.stringify({ cursor: this.#cursor, epoch: this.#state.epoch }));
    } catch (error) { // it is full, or may not be used
      this.#fail(new Error("the position could not be kept", { cause: error }));
    }
  };

  #restore() {
    try {
      const { cursor, epoch } = JSON.parse(this.#options.storage?.getItem(this.#options.storageKey) ?? "{}");
      if (!isEventID(cursor)) return;
      this.#cursor = cursor;
      if (typeof epoch === "string") this.#state = Object.freeze({ ...this.#state, epoch });
    } catch { /* what can't be read is no position */ }
  }

  // ---- timers

  #arm(name, delay, act) {
    clearTimeout(this.#timers.get(name));
    this.#timers.set(name, setTimeout(() => { this.#timers.delete(name); act(); }, delay));
  }

  #disarm(name) {
    for (const one of name ? [name] : [...this.#timers.keys()].filter((n) => n !== "save")) {
      clearTimeout(this.#timers.get(one));
      this.#timers.delete(one);
    }
  }
}

// ---- the connections

/**
 * What a connection shows of who it is for: the token, or a ticket got with it.
 * @returns {Promise<{ token?: string, ticket?: string }>}
 */
async function credential({ base, token, options }, signal) {
  if (!options.tickets) return { token };
  const response = await options.fetch(new URL("api/ticket", base), { method: "POST", headers: { Authorization: `Bearer ${token}` }, cache: "no-store", signal });
  if (!response.ok) throw await refusal(response);
  return { ticket: (await response.json()).ticket };
}

/** The reason for which an HTTP request was refused. */
async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const reason = reasonOfLabel(body.code ?? "", body.message ?? `HTTP status ${response.status}`, response.status);
  const retryAfter = Number(response.headers.get("Retry-After")) || undefined;
  return { ...reason, retryAfter };
}

/**
 * The address of a stream, with where to begin.
 * @param {any} request
 * @param {string} path
 * @param {{ ticket?: string }} shown
 */
function address({ base, after }, path, { ticket }) {
  const url = new URL(path, base);
  if (after !== undefined) url.searchParams.set("last_event_id", after);
  if (ticket) url.searchParams.set("ticket", ticket);
  return url;
}

/** One connection of either kind. It tells of its end once, and of nothing after that. */
class Link {
  constructor(request) {
    this.request = request;
    this.over = false;
  }

  /** Opens the connection: each kind does so in its own way. */
  async open() {}

  /** Lets go of what open has made. */
  abandon() {}

  start() {
    this.open().catch((error) => this.end(error.code !== undefined && error.text !== undefined ? error : { code: LOST, label: "lost", text: error.message }));
    return this;
  }

  /** Ends the connection, for a reason of either side's. */
  end(reason) {
    if (this.over) return;
    this.drop();
    this.request.hear.ended(reason);
  }

  /** Ends it without a word. */
  drop() {
    this.over = true;
    this.abandon();
  }

  receive(text) {
    this.request.hear.alive();
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.end({ code: LOST, label: "", text: "something that is no JSON came" });
      return;
    }
    this.take(message);
  }

  take(message) { this.request.hear.message(message); }
}

/** A WebSocket. The token travels as a subprotocol, so that no URL holds it. */
class Socket extends Link {
  #socket;

  async open() {
    const shown = await credential(this.request);
    if (this.over) return;
    const url = address(this.request, "ws/updates/", shown);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new this.request.options.WebSocket(url.href, shown.token ? ["bearer", shown.token] : []);
    this.#socket = socket;
    socket.onmessage = ({ data }) => !this.over && this.receive(data);
    socket.onclose = ({ code, reason }) => this.end(reasonOfClose(code || LOST, reason ?? ""));
    // A browser tells of the close in the same task; Node 20 does not tell of it at all.
    socket.onerror = () => setTimeout(() => this.end({ code: LOST, label: "lost", text: "the connection failed" }));
  }

  send(message) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(message));
  }

  abandon() {
    try {
      this.#socket?.close(1000);
    } catch { /* it was not open yet, in some implementations */ }
  }
}

/**
 * An event stream. It is read with fetch, not with EventSource: so the token can
 * stand in a header, the status of a refusal is seen, and reconnecting is ours.
 */
class EventStream extends Link {
  #controller = new AbortController();
  #farewell = null; // the error event that says why the stream ends

  async open() {
    const { signal } = this.#controller;
    const shown = await credential(this.request, signal);
    const headers = { Accept: "text/event-stream", ...(shown.token && { Authorization: `Bearer ${shown.token}` }) };
    const response = await this.request.options.fetch(address(this.request, "api/events", shown), { headers, cache: "no-store", signal });
    if (!response.ok) throw await refusal(response);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    let data = [];
    for (;;) {
      const { done, value } = await reader.read();
      if (this.over) return;
      if (done) break;
      this.request.hear.alive();
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line !== "") {
          if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
          continue; // the other fields say what data says too
        }
        if (data.length > 0) this.receive(data.join("\n"));
        if (this.over) return;
        data = [];
      }
    }
    this.end(this.#farewell ?? { code: LOST, label: "lost", text: "the connection broke" });
  }

  take(message) {
    if (message.type === "error" && message.event_id === undefined && REASONS[message.code]) this.#farewell = reasonOfLabel(message.code, message.message);
    else super.take(message);
  }

  abandon() { this.#controller.abort(); }
}

function isEventID(value) { return Number.isSafeInteger(value) && value >= 0; }

/** Has a token ended? One that can't be read is for the relay to judge. */
function expired(token) {
  try {
    const { exp } = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    return exp * 1000 <= Date.now();
  } catch {
    return false;
  }
}
