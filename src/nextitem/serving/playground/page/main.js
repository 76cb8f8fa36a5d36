// Start the page: models and columns, language and colours, views, shortcuts, token.

import { get, onTokenNeeded, readFields, setToken } from "./api.js";
import { buildCatalogue } from "./catalogue.js";
import { byId, el, fill, memory } from "./dom.js";
import { server, setServer } from "./items.js";
import { ask, buildLists, listKey } from "./lists.js";
import { buildRequest } from "./request.js";
import { change, NONE, onChange, resetConditions, state } from "./state.js";
import { language, setLanguage, t, translate } from "./text.js";
import { buildTraffic } from "./traffic.js";

const VIEWS = ["lists", "catalogue", "traffic"];
const root = document.documentElement;

async function start() {
  byId("problem").hidden = true;
  let models, columns;
  try {
    await readFields();
    models = (await get("v1/models")).filter((model) => !model.is_shadow);
    columns = await get("v1/columns", { model: models[0].name });
  } catch (error) {
    if (error.status === 401) return;
    byId("problem").hidden = false;
    byId("problem").textContent = error.status ? t("failed", { message: error.message }) : t("offline");
    return;
  }
  byId("token-form").hidden = true;
  setServer(models, columns);
  const names = models.map((model) => model.name);
  const values = {};
  if (!names.includes(state.left)) values.left = names[0];
  const left = values.left ?? state.left;
  if (state.right !== NONE && !names.includes(state.right)) values.right = names.find((name) => name !== left) ?? NONE;
  if (!location.hash.includes("?")) Object.assign(values, await example(left));
  change(values);
  build();
  ask("left");
  ask("right");
}

/** Return somebody to ask for at the first visit: a customer, or a visitor who saw popular items. */
async function example(model) {
  try {
    const { users } = await get("v1/users", { limit: 1, model });
    if (users.length) return { mode: "customer", user: users[0] };
  } catch (error) {
    if (error.status !== 403) throw error;
  }
  const { items } = await get("v1/items", { limit: 3, model });
  return { mode: "history", history: items.map((item) => String(item.item_id)) };
}

function build() {
  translate(document);
  const other = byId("language");
  other.textContent = t("language.other");
  other.lang = language === "zh" ? "en" : "zh";
  other.setAttribute("aria-label", t("language.label"));
  showTheme();
  if (!server.models.length) return;
  buildRequest();
  buildLists();
  buildCatalogue();
  buildTraffic();
  showView();
}

function showView() {
  for (const view of VIEWS) byId(`view-${view}`).hidden = view !== state.view;
  for (const link of byId("views").children) {
    if (link.hash === `#${state.view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = state.view === "lists" ? "nextitem" : `${t(state.view)} - nextitem`;
}

onChange((changed) => changed.has("view") && showView());
byId("views").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  event.preventDefault();
  change({ view: link.hash.slice(1) }, { push: true });
});

const systemTheme = window.matchMedia("(prefers-color-scheme: dark)");
const theme = () => root.dataset.theme ?? (systemTheme.matches ? "dark" : "light");

function showTheme() {
  byId("theme").textContent = t(theme() === "dark" ? "theme.light" : "theme.dark");
  byId("theme").setAttribute("aria-label", `${byId("theme").textContent}: ${t("theme.label")}`);
}

function switchTheme() {
  root.dataset.theme = theme() === "dark" ? "light" : "dark";
  memory.set("theme", root.dataset.theme);
  showTheme();
}

function switchLanguage() {
  setLanguage(language === "zh" ? "en" : "zh");
  build();
}

systemTheme.addEventListener("change", showTheme);
byId("theme").addEventListener("click", switchTheme);
byId("language").addEventListener("click", switchLanguage);
byId("help").addEventListener("click", showHelp);
byId("skip").addEventListener("click", () => byId("main").focus());

const SHORTCUTS = [
  ["/", "help.search"],
  ["c", "help.customer"],
  ["1 2 3", "help.views"],
  ["j k", "help.rows"],
  ["o", "help.other"],
  ["a", "help.add"],
  ["x", "help.exclude"],
  ["Enter", "help.open"],
  ["r", "help.reset"],
  ["l", "help.language"],
  ["t", "help.theme"],
  ["Esc", "help.close"],
];

function showHelp() {
  const dialog = byId("help-dialog");
  const row = ([keys, text]) => [el("dt", {}, keys.split(" ").map((key) => el("kbd", {}, key))), el("dd", {}, t(text))];
  fill(
    dialog,
    el(
      "div",
      { class: "dialog-head" },
      el("h2", { id: "help-title" }, t("help.title")),
      el("button", { type: "button", class: "quiet", on: { click: () => dialog.close() } }, t("close")),
    ),
    el("dl", { class: "keys" }, SHORTCUTS.map(row)),
    el("p", { class: "hint" }, el("a", { href: "openapi.json" }, t("help.api"))),
  );
  if (!dialog.open) dialog.showModal();
}

function focusCustomer() {
  change({ view: "lists", mode: "customer" });
  byId("user")?.focus();
}

function focusSearch() {
  if (state.view === "catalogue") {
    byId("catalogue-search")?.focus();
    return;
  }
  change({ view: "lists", mode: "history" });
  byId("search")?.focus();
}

const KEYS = {
  "/": focusSearch,
  c: focusCustomer,
  r: resetConditions,
  l: switchLanguage,
  t: switchTheme,
  "?": showHelp,
  ...Object.fromEntries(VIEWS.map((view, place) => [String(place + 1), () => change({ view }, { push: true })])),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const isField = event.target.closest?.("input:not([type=radio], [type=range]), select, textarea");
  if (isField) {
    if (event.key === "Escape") isField.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  if (state.view === "lists" && listKey(event.key)) event.preventDefault();
  else if (event.key in KEYS) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

onTokenNeeded((wasSent) => {
  byId("token-form").hidden = false;
  byId("token-problem").textContent = wasSent ? t("token.wrong") : "";
  byId("token").focus();
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value.trim());
  start();
});

build();
start();
