// The form of a request: who it is for, its conditions, and its knobs.

import { get, isKnown, known } from "./api.js";
import { afterPause, byId, el, fill } from "./dom.js";
import { addToHistory, lookUp, openItem, server, titleOf } from "./items.js";
import { searchBox } from "./search.js";
import { change, onChange, resetConditions, state } from "./state.js";
import { number, t } from "./text.js";

const parts = {}; // elements that are filled again when the state changes
let users = [];
let areUsersHidden = false;

/** Build the form, in the present language. */
export function buildRequest() {
  const form = byId("request");
  for (const name of ["who", "history", "filters", "excluded", "knobs", "curl"]) parts[name] = el("div", { class: `part-${name}` });
  parts.history.id = "history";
  fill(
    form,
    el("fieldset", {}, el("legend", {}, t("who")), modes(), parts.who),
    el("details", { class: "section", open: isWide() }, el("summary", {}, t("conditions")), countAndSeen(), parts.filters, parts.excluded),
    el("details", { class: "section", open: isWide() }, el("summary", {}, t("knobs")), parts.knobs),
    el("p", { class: "actions" }, el("button", { type: "button", id: "reset", class: "quiet", on: { click: resetConditions } }, t("reset"))),
    el("details", { class: "section curl" }, el("summary", {}, t("curl")), parts.curl),
  );
  form.onsubmit = (event) => event.preventDefault();
  showWho();
  showFilters();
  showExcluded();
  showKnobs();
  showCurl();
}

const isWide = () => window.matchMedia("(min-width: 60rem)").matches;

onChange((changed) => {
  if (!parts.who) return;
  if (changed.has("mode")) {
    for (const radio of document.querySelectorAll("input[name=mode]")) radio.checked = radio.value === state.mode;
    showWho();
  } else if (state.mode === "history" && changed.has("history")) showHistory();
  else if (changed.has("user")) showCustomer();
  if (changed.has("k")) byId("k").value = state.k;
  if (changed.has("seen")) byId("seen").value = state.seen;
  if (changed.has("only")) showFilters();
  if (changed.has("exclude")) showExcluded();
  if (["left", "right", "guide", "objective", "explore"].some((name) => changed.has(name))) showKnobs();
  showCurl();
});

function modes() {
  return el(
    "div",
    { class: "switch" },
    ["customer", "history"].map((mode) =>
      el(
        "label",
        {},
        el("input", { type: "radio", name: "mode", value: mode, checked: state.mode === mode, on: { change: () => change({ mode }) } }),
        el("span", {}, t(mode === "customer" ? "customer" : "visitor")),
      ),
    ),
  );
}

function showWho() {
  if (state.mode === "customer") {
    const input = el("input", { id: "user", list: "users", value: state.user, placeholder: t("customer.hint"), spellcheck: "false", autocomplete: "off" });
    input.addEventListener("input", afterPause(250, () => listUsers(input.value)));
    input.addEventListener("input", afterPause(400, () => change({ user: input.value.trim() })));
    const another = el("button", { type: "button", id: "another", on: { click: chooseAnother } }, t("customer.other"));
    fill(
      parts.who,
      el("label", { for: "user" }, t("customer.label")),
      el("div", { class: "row" }, input, another),
      el("datalist", { id: "users" }),
      parts.history,
    );
    listUsers("").then(() => !state.user && users.length && choose(users[0]));
    showCustomer();
    return;
  }
  fill(
    parts.who,
    searchBox({ id: "search", label: t("search.label"), hint: t("search.hint"), choose: (item) => addToHistory(item.item_id) }),
    parts.history,
  );
  showHistory();
}

async function listUsers(text) {
  try {
    users = (await get("v1/users", { search: text, limit: 50 })).users;
    areUsersHidden = false;
  } catch (error) {
    users = [];
    areUsersHidden = error.status === 403;
  }
  const list = byId("users");
  if (list) fill(list, users.map((user) => el("option", { value: user })));
  if (byId("another")) byId("another").hidden = !users.length;
}

function choose(user) {
  byId("user").value = user;
  change({ user });
}

async function chooseAnother() {
  if (users.length < 2) await listUsers("");
  const others = users.filter((user) => user !== state.user);
  if (others.length) choose(others[Math.floor(Math.random() * others.length)]);
}

/** Show the latest events of the customer, which can become a history to change. */
async function showCustomer() {
  const user = state.user;
  server.customerHistory = [];
  if (byId("user") && byId("user").value.trim() !== user) byId("user").value = user;
  if (!user) {
    fill(parts.history);
    return;
  }
  let answer;
  try {
    answer = await get(`v1/users/${encodeURIComponent(user)}/history`, { limit: 50, model: state.left });
  } catch (error) {
    fill(parts.history, el("p", { class: "hint" }, error.status === 403 ? t("customer.hidden") : error.message || t("offline")));
    return;
  }
  if (state.user !== user || state.mode !== "customer") return;
  if (!answer.events.length) {
    fill(parts.history, el("p", { class: "hint" }, areUsersHidden ? t("customer.hidden") : t("customer.unknown")));
    return;
  }
  server.customerHistory = answer.events.map((event) => String(event.item_id));
  const rows = answer.events.slice(-8).map((event) =>
    el(
      "li",
      {},
      el("button", { type: "button", class: "link", on: { click: () => openItem(event.item_id) } }, event.title),
      event.action ? el("span", { class: "about" }, event.action) : null,
    ),
  );
  const edit = el(
    "button",
    { type: "button", id: "edit-history", on: { click: () => change({ mode: "history", history: server.customerHistory.slice(-20) }) } },
    t("customer.edit"),
  );
  fill(
    parts.history,
    el("p", { class: "hint" }, t("customer.events", { count: answer.num_events })),
    el("ol", { class: "events" }, rows),
    el("p", { class: "actions" }, edit),
  );
}

async function showHistory() {
  await lookUp(state.history, state.left).catch(() => {});
  if (state.mode !== "history") return;
  const remove = (place) => () => change({ history: state.history.filter((_, other) => other !== place) });
  if (!state.history.length) {
    fill(
      parts.history,
      el("p", { class: "hint" }, t("history.empty")),
      el("p", { class: "actions" }, el("button", { type: "button", id: "example", on: { click: tryExample } }, t("history.example"))),
    );
    return;
  }
  const clear = el("button", { type: "button", class: "quiet", on: { click: () => change({ history: [] }) } }, t("history.clear"));
  fill(
    parts.history,
    el("div", { class: "head" }, el("h3", {}, t("history")), clear),
    el("ol", { class: "events" }, state.history.map((id, place) => chip(id, titleOf(id), remove(place)))),
  );
}

/** Choose the items of the first customer if there is one, else popular items. */
async function tryExample() {
  try {
    const { users: names } = await get("v1/users", { limit: 1 });
    const { events } = await get(`v1/users/${encodeURIComponent(names[0])}/history`, { limit: 5 });
    if (events.length) return change({ history: events.map((event) => String(event.item_id)) });
  } catch {
    // Customers are hidden, or there is none.
  }
  const { items } = await get("v1/items", { limit: 3, model: state.left });
  return change({ history: items.map((item) => String(item.item_id)) });
}

function chip(id, title, remove) {
  return el(
    "li",
    { class: "removable" },
    el("button", { type: "button", class: "link", on: { click: () => openItem(id) } }, title),
    el("button", { type: "button", class: "remove", "aria-label": t("remove", { title }), on: { click: remove } }, "×"),
  );
}

function countAndSeen() {
  const k = el("input", { id: "k", type: "number", min: 1, max: 100, value: state.k });
  k.addEventListener("input", () => k.validity.valid && k.value && change({ k: Number(k.value) }));
  const seen = el(
    "select",
    { id: "seen", on: { change: () => change({ seen: seen.value }) } },
    [["", "seen.default"], ["yes", "seen.yes"], ["no", "seen.no"]].map(([value, key]) => el("option", { value, selected: state.seen === value }, t(key))),
  );
  return el(
    "div",
    { class: "pair" },
    el("div", { class: "narrow" }, el("label", { for: "k" }, t("k")), k),
    el("div", {}, el("label", { for: "seen" }, t("seen")), seen),
  );
}

function showFilters() {
  if (!server.columns.length) {
    fill(parts.filters);
    return;
  }
  const former = byId("filter-column")?.value;
  const column = el(
    "select",
    { id: "filter-column", "aria-label": t("filter.column") },
    server.columns.map((each) => el("option", { value: each.name, selected: each.name === former }, each.name.replaceAll("_", " "))),
  );
  const value = el("select", { id: "filter-value", "aria-label": t("filter.value.label") });
  const listValues = () => {
    const values = server.columns.find((each) => each.name === column.value).values;
    fill(value, el("option", { value: "" }, t("filter.value")), values.map((each) => el("option", { value: each }, each)));
  };
  column.addEventListener("change", listValues);
  value.addEventListener("change", () => {
    const condition = `${column.value}=${value.value}`;
    if (value.value && !state.only.includes(condition)) change({ only: [...state.only, condition] });
  });
  listValues();
  const chips = state.only.map((condition) => {
    const title = condition.replace("=", ": ").replaceAll("_", " ");
    const remove = () => change({ only: state.only.filter((other) => other !== condition) });
    return el(
      "li",
      { class: "removable" },
      el("span", {}, title),
      el("button", { type: "button", class: "remove", "aria-label": t("remove", { title }), on: { click: remove } }, "×"),
    );
  });
  fill(
    parts.filters,
    el("div", { class: "label", id: "filter-label" }, t("filter")),
    el("div", { class: "row", role: "group", "aria-labelledby": "filter-label" }, column, value),
    chips.length ? el("ul", { class: "chips" }, chips) : null,
  );
}

async function showExcluded() {
  await lookUp(state.exclude, state.left).catch(() => {});
  const remove = (id) => () => change({ exclude: state.exclude.filter((other) => other !== id) });
  fill(
    parts.excluded,
    el("div", { class: "label" }, t("excluded")),
    state.exclude.length
      ? el("ul", { class: "chips" }, state.exclude.map((id) => chip(id, titleOf(id), remove(id))))
      : el("p", { class: "hint" }, t("excluded.none")),
  );
}

/** Show the knobs that one of the chosen models has. */
export function showKnobs() {
  const models = server.models.filter((model) => [state.left, state.right].includes(model.name));
  const guided = models.filter((model) => model.has_guide);
  const objectives = [...new Set(models.flatMap((model) => model.objectives ?? []))];
  const focused = document.activeElement?.id;
  fill(
    parts.knobs,
    isKnown("explore") ? exploration() : null,
    guided.length && isKnown("guide_weight") ? guideWeight(guided) : null,
    objectives.length && isKnown("objective") ? objective(objectives) : null,
  );
  if (!parts.knobs.childElementCount) fill(parts.knobs, el("p", { class: "hint" }, t("knobs.none")));
  if (["explore", "guide", "objective"].includes(focused)) byId(focused)?.focus();
}

function slider(id, { value, max, step, label, shown, hint, set }) {
  const output = el("output", { for: id }, shown(value));
  const input = el("input", { id, type: "range", min: 0, max, step, value, "aria-describedby": `${id}-hint` });
  const send = afterPause(120, () => set(Number(input.value)));
  input.addEventListener("input", () => {
    output.textContent = shown(Number(input.value));
    send();
  });
  return [
    el("div", { class: "head" }, el("label", { for: id }, label), output),
    input,
    el("p", { class: "hint", id: `${id}-hint` }, hint),
  ];
}

function exploration() {
  const redraw = el("button", { type: "button", id: "redraw", class: "quiet", on: { click: () => document.dispatchEvent(new Event("ask-again")) } }, t("redraw"));
  return el(
    "div",
    { class: "knob" },
    slider("explore", {
      value: state.explore,
      max: 2,
      step: 0.1,
      label: t("explore"),
      shown: (value) => (value ? number(value, 1) : t("explore.off")),
      hint: t("explore.hint"),
      set: (explore) => change({ explore }),
    }),
    state.explore > 0 ? redraw : null,
  );
}

function guideWeight(guided) {
  const trained = guided[0].guide_weight ?? 0.5;
  const asTrained = el("button", { type: "button", class: "quiet", on: { click: () => change({ guide: "" }) } }, t("guide.asTrained"));
  return el(
    "div",
    { class: "knob" },
    slider("guide", {
      value: state.guide === "" ? trained : Number(state.guide),
      max: 1,
      step: 0.005,
      label: t("guide"),
      shown: (value) => (state.guide === "" && value === trained ? t("guide.trained", { weight: number(trained, 2) }) : number(value, 2)),
      hint: `${t("guide.hint")} (${guided.map((model) => model.name).join(", ")})`,
      set: (weight) => change({ guide: String(weight) }),
    }),
    state.guide === "" ? null : asTrained,
  );
}

function objective(names) {
  const select = el(
    "select",
    { id: "objective", on: { change: () => change({ objective: select.value }) } },
    el("option", { value: "" }, t("objective.default")),
    names.map((name) => el("option", { value: name, selected: state.objective === name }, name)),
  );
  return el("div", { class: "knob" }, el("label", { for: "objective" }, t("objective")), select);
}

/** Return the request for one model, without the fields that the server does not know. */
export function requestFor(name) {
  const model = server.models.find((each) => each.name === name);
  const body = { k: state.k, model: name };
  if (state.mode === "customer") body.user_id = state.user;
  else body.history = state.history;
  if (state.only.length) body.only = state.only;
  if (state.exclude.length) body.exclude = state.exclude;
  if (state.seen) body.exclude_seen = state.seen === "yes";
  const optional = { explain: true, preview: true, explore: state.explore };
  if (state.guide !== "" && model?.has_guide) optional.guide_weight = Number(state.guide);
  if (state.objective && model?.objectives?.includes(state.objective)) optional.objective = state.objective;
  return { ...body, ...known(optional) };
}

export const isAskable = () => (state.mode === "customer" ? state.user !== "" : state.history.length > 0);

/** Show the request for the left model as a command to copy. */
function showCurl() {
  const { preview, explain, explore, ...body } = requestFor(state.left);
  const json = JSON.stringify(explore ? { ...body, explore } : body);
  const address = new URL("v1/recommend", location.href.replace(/#.*/, "")).href;
  const command = `curl -s ${address} \\\n  -H 'Content-Type: application/json' \\\n  -d '${json.replaceAll("'", "'\\''")}'`;
  const copy = el("button", { type: "button", class: "quiet" }, t("copy"));
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(command).catch(() => {});
    copy.textContent = t("copied");
  });
  fill(parts.curl, el("pre", { tabindex: "0" }, command), copy);
}
