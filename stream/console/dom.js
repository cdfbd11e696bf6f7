// What is made of the page is made here: elements with texts in them, never markup.
// Payloads are strangers' texts; the page's policy would refuse markup anyway.

export const byID = (id) => document.getElementById(id);

/** An element. Strings among the children become texts; properties come from us only. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(node.dataset, value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

/** An element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Changes a text only if it is another, so that nothing is drawn in vain. */
export function say(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

/** Calls once before the next frame is drawn, however often it was asked for. */
export function onceAFrame(act) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    // A page that nobody sees draws no frames, and must not gather work for ever.
    const due = document.hidden ? (f) => setTimeout(f, 500) : requestAnimationFrame;
    due(() => { waiting = false; act(); });
  };
}
