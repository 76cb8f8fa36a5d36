// The catalogue: a search, and the tree of semantic IDs, one prefix after the other.

import { get } from "./api.js";
import { byId, el, fill } from "./dom.js";
import { itemList, openItem, server } from "./items.js";
import { searchBox } from "./search.js";
import { change, onChange, state } from "./state.js";
import { number, t } from "./text.js";

let tree;
let latest = 0;

const generators = () => server.models.filter((model) => model.num_levels);
const model = () => generators().find((each) => each.name === state.model) ?? generators().find((each) => [state.left, state.right].includes(each.name)) ?? generators()[0];

/** Build the view, in the present language. */
export function buildCatalogue() {
  const models = generators();
  const select = el(
    "select",
    { id: "tree-model", on: { change: () => change({ model: select.value, codes: "" }) } },
    models.map((each) => el("option", { value: each.name, selected: each === model() }, each.name)),
  );
  tree = el("div", { class: "tree", "aria-live": "polite" });
  fill(
    byId("view-catalogue"),
    searchBox({ id: "catalogue-search", label: t("catalogue.search"), hint: t("search.hint"), choose: (item) => openItem(item.item_id) }),
    el(
      "div",
      { class: "tree-head" },
      el("h2", {}, t("tree.title")),
      models.length ? el("div", { class: "inline" }, el("label", { for: "tree-model" }, t("tree.model")), select) : null,
    ),
    tree,
  );
  if (state.view === "catalogue") showTree();
}

onChange((changed) => {
  if (state.view !== "catalogue" || !tree || !["view", "model", "codes"].some((name) => changed.has(name))) return;
  if (byId("tree-model") && model()) byId("tree-model").value = model().name;
  showTree();
});

async function showTree() {
  if (!model()) {
    fill(tree, el("p", { class: "hint" }, t("tree.none")));
    return;
  }
  const turn = ++latest;
  tree.setAttribute("aria-busy", "true");
  let content;
  try {
    const prefix = await get("v1/prefixes", { model: model().name, codes: state.codes });
    content = [path(prefix), summary(prefix), prefix.items.length ? itemList(prefix.items) : branches(prefix)];
  } catch (error) {
    content = [path({ codes: [] }), el("p", { class: "note", role: "alert" }, error.message || t("offline"))];
  }
  if (turn !== latest) return;
  const hadFocus = tree.contains(document.activeElement);
  fill(tree, content);
  tree.removeAttribute("aria-busy");
  if (hadFocus) tree.querySelector(".path [aria-current]")?.focus();
}

const go = (codes) => () => change({ codes: codes.join(",") }, { push: true });

function path({ codes }) {
  const steps = [[], ...codes.map((_, place) => codes.slice(0, place + 1))];
  return el(
    "nav",
    { class: "path", "aria-label": t("tree.title") },
    steps.map((step, place) => {
      const isLast = place === steps.length - 1;
      const name = place ? String(step.at(-1)) : t("tree.root");
      return [
        place ? el("span", { class: "separator", "aria-hidden": "true" }, "/") : null,
        isLast
          ? el("span", { "aria-current": "location", tabindex: "-1", class: "here" }, name)
          : el("button", { type: "button", class: "link", on: { click: go(step) } }, name),
      ];
    }),
  );
}

function summary({ codes, num_items: count, items, children }) {
  const values = { count: number(count), children: number(children.length), codes: codes.join(" · ") };
  const key = items.length ? "tree.leaf" : codes.length ? "tree.here" : "tree.all";
  return el("p", { class: "hint" }, t(key, { ...values, count: count === 1 ? 1 : values.count }));
}

function branches({ children }) {
  const largest = Math.max(...children.map((child) => child.num_items));
  return el(
    "table",
    { class: "branches" },
    el("thead", {}, el("tr", {}, ["tree.code", "tree.items", "tree.examples"].map((key) => el("th", { scope: "col" }, t(key))))),
    el(
      "tbody",
      {},
      children.map((child) =>
        el(
          "tr",
          {},
          el("td", {}, el("button", { type: "button", class: "code-button", "aria-label": `${t("tree.code")} ${child.codes.at(-1)}`, on: { click: go(child.codes) } }, child.codes.at(-1))),
          el("td", { class: "amount" }, el("span", { class: "bar-count", "aria-hidden": "true", style: { "--share": child.num_items / largest } }), number(child.num_items)),
          el("td", { class: "examples" }, child.titles.map((title) => el("span", {}, title))),
        ),
      ),
    ),
  );
}
