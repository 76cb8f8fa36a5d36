// What is being asked, as one object that the address of the page contains, so that a view can be reloaded and shared.

const DEFAULTS = {
  view: "lists",
  mode: "history", // or "customer"
  user: "",
  history: [], // item ids, oldest first
  left: "", // model; "": the first
  right: "", // model; "": another one
  k: 10,
  seen: "", // "", "yes" or "no": leave out the items of the history
  only: [], // column=value
  exclude: [], // item ids
  explore: 0, // temperature
  guide: "", // weight; "": as trained
  objective: "",
  walk: "left", // pane whose search is drawn
  model: "", // of the catalogue
  codes: "", // prefix in the catalogue
};
export const NONE = "-"; // in the place of the second model: no second list
const LISTS = ["history", "only", "exclude"];
const NUMBERS = ["k", "explore"];
const listeners = [];

export const state = { ...structuredClone(DEFAULTS), ...fromAddress() };

/** Call `listener(changed)` after every change, with the set of names that changed. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Change some fields, write them into the address, and tell the listeners. */
export function change(values, { push = false } = {}) {
  const changed = new Set();
  for (const [name, value] of Object.entries(values)) {
    if (JSON.stringify(state[name]) !== JSON.stringify(value)) changed.add(name);
    state[name] = value;
  }
  if (!changed.size) return;
  const address = toAddress();
  if (push) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  for (const listener of listeners) listener(changed);
}

/** Forget all conditions and knobs, but not who asks, nor the models. */
export function resetConditions() {
  const { k, seen, only, exclude, explore, guide, objective } = structuredClone(DEFAULTS);
  change({ k, seen, only, exclude, explore, guide, objective });
}

window.addEventListener("popstate", () => change({ ...structuredClone(DEFAULTS), ...fromAddress() }));

function toAddress() {
  const query = new URLSearchParams();
  for (const [name, initial] of Object.entries(DEFAULTS)) {
    if (name === "view" || JSON.stringify(state[name]) === JSON.stringify(initial)) continue;
    if (LISTS.includes(name)) for (const part of state[name]) query.append(name, part);
    else query.set(name, state[name]);
  }
  const text = query.toString();
  return `#${state.view}${text ? `?${text}` : ""}`;
}

function fromAddress() {
  const [view, text = ""] = decodeSafely(location.hash.slice(1));
  const query = new URLSearchParams(text);
  const values = { view: ["lists", "catalogue", "traffic"].includes(view) ? view : "lists" };
  for (const name of query.keys()) {
    if (!(name in DEFAULTS) || name === "view") continue;
    if (LISTS.includes(name)) values[name] = query.getAll(name);
    else if (NUMBERS.includes(name)) values[name] = Number.isFinite(Number(query.get(name))) ? Number(query.get(name)) : DEFAULTS[name];
    else values[name] = query.get(name);
  }
  return values;
}

function decodeSafely(hash) {
  const place = hash.indexOf("?");
  return place < 0 ? [hash] : [hash.slice(0, place), hash.slice(place + 1)];
}
