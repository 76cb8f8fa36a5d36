// Items with their columns, as the server knows them: looked up in batches, printed, and shown in a window.

import { get, post } from "./api.js";
import { byId, el, fill } from "./dom.js";
import { change, state } from "./state.js";
import { number, t } from "./text.js";

const known = new Map(); // "model id" -> item
export const server = { models: [], columns: [] };
let labels = []; // columns that describe an item in one line

const key = (model, id) => `${model} ${id}`;

/** Store the models and columns of the server, and choose the columns that describe an item in one line. */
export function setServer(models, columns) {
  known.clear();
  Object.assign(server, { models, columns });
  const rank = { category: 0, brand: 1, artist: 1, author: 1 };
  const names = columns.map((column) => column.name);
  labels = [...names].sort((a, b) => (rank[a] ?? 5) - (rank[b] ?? 5) || names.indexOf(a) - names.indexOf(b)).slice(0, 2);
}

/** Return a map from ids (as text) to items, for those that the model knows. */
export async function lookUp(ids, model, options = {}) {
  const missing = [...new Set(ids.map(String))].filter((id) => !known.has(key(model, id)));
  for (let start = 0; start < missing.length; start += 50) {
    const answer = await get("v1/items", { item_id: missing.slice(start, start + 50), model }, options);
    for (const item of answer.items) known.set(key(model, item.item_id), item);
  }
  return new Map(ids.map((id) => [String(id), known.get(key(model, id))]).filter(([, item]) => item));
}

export const titleOf = (id) => {
  for (const model of server.models) {
    const item = known.get(key(model.name, id));
    if (item) return item.title;
  }
  return String(id);
};

/** Return a line that describes an item: price, two columns with names or classes, and the id. */
export function describe(item) {
  const parts = [];
  if (typeof item?.columns?.price === "number") parts.push(el("span", { class: "price" }, number(item.columns.price, 2)));
  for (const name of labels) {
    const value = item?.columns?.[name];
    if (value !== null && value !== undefined && value !== "") parts.push(print(value));
  }
  parts.push(el("span", { class: "id" }, String(item?.item_id ?? "")));
  return parts.flatMap((part, place) => (place ? [" · ", part] : [part]));
}

function print(value) {
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" ? number(value, Number.isInteger(value) ? 0 : 2) : String(value);
}

export const isMember = (list, id) => list.some((other) => String(other) === String(id));

export function addToHistory(id) {
  if (state.mode === "customer") {
    const events = server.customerHistory ?? [];
    change({ mode: "history", history: [...events, String(id)] });
  } else change({ history: [...state.history, String(id)] });
}

export function exclude(id) {
  if (!isMember(state.exclude, id)) change({ exclude: [...state.exclude, String(id)] });
}

/** Open a window with everything that is known of an item. */
export async function openItem(id) {
  const dialog = byId("item-dialog");
  const opener = document.activeElement;
  const close = () => dialog.close();
  const closeButton = el("button", { type: "button", class: "quiet", on: { click: close } }, t("close"));
  const body = el("div", { class: "item-body", "aria-busy": "true" });
  fill(dialog, el("div", { class: "dialog-head" }, el("h2", { id: "item-title" }, titleOf(id)), closeButton), body);
  dialog.onclose = () => opener?.isConnected && opener.focus();
  if (!dialog.open) dialog.showModal();
  try {
    const found = await Promise.all(server.models.map((model) => lookUp([id], model.name)));
    const item = found.map((items) => items.get(String(id))).find(Boolean);
    if (!item) {
      fill(body, el("p", {}, t("item.none")));
      return;
    }
    byId("item-title").textContent = item.title;
    fill(body, facts(id, item, found), actions(id, close), await similar(id));
  } catch (error) {
    fill(body, el("p", { role: "alert" }, error.message || t("offline")));
  } finally {
    body.removeAttribute("aria-busy");
  }
}

function facts(id, item, found) {
  const rows = [[t("item.id"), String(item.item_id)]];
  for (const [name, value] of Object.entries(item.columns)) {
    if (value !== null) rows.push([name.replaceAll("_", " "), name === "price" ? number(value, 2) : print(value)]);
  }
  server.models.forEach((model, place) => {
    const codes = found[place].get(String(id))?.codes;
    if (!codes) return;
    const open = () => {
      byId("item-dialog").close();
      change({ view: "catalogue", model: model.name, codes: codes.slice(0, -1).join(",") }, { push: true });
    };
    const link = el("button", { type: "button", class: "link", title: t("item.browse"), on: { click: open } }, codes.join(" · "));
    rows.push([`${t("item.codes")} (${model.name})`, link]);
  });
  return el("dl", { class: "facts" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function actions(id, close) {
  const act = (action) => () => {
    close();
    action(id);
  };
  return el(
    "p",
    { class: "actions" },
    el("button", { type: "button", on: { click: act(addToHistory) } }, t("item.add")),
    el("button", { type: "button", on: { click: act(exclude) } }, t("item.exclude")),
  );
}

/** Return similar items by the first model that can tell. */
async function similar(id) {
  const preferred = [state.left, state.right].filter((name) => server.models.some((model) => model.name === name));
  for (const model of new Set([...preferred, ...server.models.map((model) => model.name)])) {
    try {
      const answer = await post("v1/similar", { item_id: String(id), k: 5, model });
      const items = await lookUp(answer.items.map((item) => item.item_id), model);
      return [el("h3", {}, t("item.similar", { model })), itemList(answer.items.map((item) => items.get(String(item.item_id))))];
    } catch (error) {
      if (error.status !== 400) throw error; // 400: this model has no similarities
    }
  }
  return [];
}

/** Return a list of items, each of which opens its window. */
export function itemList(items) {
  return el(
    "ul",
    { class: "item-list" },
    items.filter(Boolean).map((item) =>
      el(
        "li",
        {},
        el("button", { type: "button", class: "link", on: { click: () => openItem(item.item_id) } }, item.title),
        el("span", { class: "about" }, describe(item)),
      ),
    ),
  );
}
