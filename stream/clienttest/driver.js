// Plays an application that uses the browser client: does what a test tells it, and
// says what it is told by the client, all as JSON.

export function drive({ connect }, say) {
  const relays = new Map();
  const asked = new Map(); // those who wait for a token, by the name of their relay

  const acts = {
    connect({ name, options, ownToken, keep }) {
      if (!ownToken) {
        options.token = ({ reason }) => new Promise((resolve, reject) => {
          asked.set(name, { resolve, reject });
          say({ name, wants: reason });
        });
      }
      if (keep) options.storage = globalThis.sessionStorage;
      const relay = connect(options);
      relays.set(name, relay);
      relay.onEvent((event) => say({ name, event }));
      relay.onState((state) => say({ name, state, at: Date.now(), cursor: relay.cursor ?? -1, counts: relay.counts }));
      relay.onRefetch(({ reason }) => say({ name, refetch: reason }));
      relay.onError(({ message, code, label }) => say({ name, error: { message, code, label } }));
    },
    token({ name, token, fails }) {
      const { resolve, reject } = asked.get(name);
      if (fails) reject(new Error(fails));
      else resolve(token);
    },
    replay({ name, after }) { relays.get(name).replay(after); },
    interrupt({ name }) { relays.get(name).interrupt(); },
    close({ name }) { relays.get(name).close(); },
    throwing({ name }) { relays.get(name).onEvent(() => { throw new Error("the application has a fault"); }); },
    on({ name, type }) { relays.get(name).on(type, (event) => say({ name, typed: event })); },
  };
  return (command) => acts[command.do](command);
}
