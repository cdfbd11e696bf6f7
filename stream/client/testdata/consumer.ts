// An application that uses all that the package exports, and a few mistakes that the
// types must find. It is compiled by package_test.go, never run.
import {
  connect, REASONS,
  type Off, type Options, type Reason, type Refetch, type Relay, type RelayError, type RelayEvent, type State, type TokenRequest, type TransportName,
} from "syncrelay-client";

interface Grade { merits: number; demerits: number }

const only: TransportName = "sse";

const options: Options = {
  url: new URL("https://grades.example.org/relay/"),
  token: async ({ reason }: TokenRequest) => (reason === "token_expiring" ? "another" : null),
  after: 0,
  transport: only,
  tickets: true,
  storage: sessionStorage,
  storageKey: "user 5",
  minDelay: 500, maxDelay: 10_000, connectTimeout: 5000, pingInterval: 20_000, pongTimeout: 5000, silence: 45_000, webSocketRetry: 60_000,
  WebSocket, fetch,
};

const relay: Relay = connect(options);

const off: Off = relay.on<Grade>("grade_update", ({ event_id, cadet_id, data, timestamp }: RelayEvent<Grade>) => {
  const sum: number = event_id + (cadet_id ?? 0) + data.merits - data.demerits;
  console.log(sum, new Date(timestamp));
});
off();

relay.on("message", (event) => {
  // @ts-expect-error what is in a payload is not known unless it is said
  event.data.text.length;
});
relay.onEvent((event) => console.log(event.type, relay.cursor?.toFixed(), relay.counts.received + relay.counts.duplicates + relay.counts.replayed));

relay.onState((state: State) => {
  if (state.status === "waiting" && state.retryAt !== null) console.log(state.retryAt - Date.now(), state.attempt);
  const reason: Reason | null = state.reason;
  console.log(reason?.code, reason?.label, reason?.text, state.transport satisfies TransportName | null, state.catchingUp, state.roundTrip);
  console.log(state.userId, state.role, state.cadetId, state.epoch, state.reconnects);
  // @ts-expect-error there is no such status
  if (state.status === "offline") relay.interrupt();
  // @ts-expect-error the state is the client's
  state.status = "open";
});

// All reasons to fetch anew are known: one more would be a mistake here.
function why({ reason }: Refetch): string {
  switch (reason) {
    case "truncated": return "away for too long";
    case "epoch_changed": return "another log";
    case "unknown_position": return "another relay";
    case "identity_changed": return "another role";
  }
}
relay.onRefetch((notice) => console.log(why(notice)));
relay.onError((error: RelayError) => console.log(error.message, error.code, error.label));

relay.replay(122);
relay.close();

const [code, text] = REASONS["token_expired"] ?? [0, ""];
console.log(code.toFixed(), text.trim());

connect({ token: "a token" });
// @ts-expect-error the token is required
connect({});
// @ts-expect-error a transport of this name there is not
connect({ token: "a token", transport: "long-polling" });
// @ts-expect-error the table of reasons is not to be changed
REASONS["another"] = [4000, "another"];
