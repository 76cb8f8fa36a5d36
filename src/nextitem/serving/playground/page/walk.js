// The search of a generator as it walks the tree of semantic IDs: one column for each code, and the list as the last.

import { el, fill, svg } from "./dom.js";
import { openItem } from "./items.js";
import { change, state } from "./state.js";
import { number, percent, t } from "./text.js";

const SHOWN = { kept: 10, pruned: 3, cut: 4 }; // prefixes of a column until all are asked for
const SHOWN_NARROW = { kept: 3, pruned: 1, cut: 2 }; // of which those on the way to the list are always shown
const MARKS = { kept: "●", pruned: "○", cut: "✕" };
let isWhole = false; // whether all prefixes are shown
let marked = ""; // codes of the prefix that stays marked
let drawn = null; // what is shown, to draw again
let redraw = null;

/**
 * Show the search of one list.
 * @param {HTMLElement} section where
 * @param {object} shown `side`, `sides` with a search, `answer`, and `items` by id; nothing hides the section
 */
export function showWalk(section, shown) {
  drawn = shown;
  section.hidden = !shown;
  redraw?.disconnect();
  if (!shown) {
    fill(section);
    return;
  }
  const levels = shown.answer.explanation.levels;
  const targets = shown.answer.items
    .map((item, place) => ({ item, place, codes: shown.items.get(String(item.item_id))?.codes }))
    .filter((target) => target.codes);
  const total = levels.reduce((sum, level) => sum + level.prefixes.length, 0);
  const columns = levels.map((level) => column(level, targets, shown.answer.model));
  const lines = svg("svg", { class: "lines", "aria-hidden": "true" });
  const board = el("div", { class: "board", style: { "--columns": levels.length + 1 } }, lines, columns, itemColumn(targets));
  const numShown = board.querySelectorAll(".prefix").length;
  fill(section, heading(section, shown), legend(levels), board, numShown < total || isWhole ? toggle(section, total) : null);
  const rows = [...board.querySelectorAll("[data-codes]")];
  follow(board, rows);
  redraw = new ResizeObserver(() => draw(board, lines, rows));
  redraw.observe(board);
}

function heading(section, { side, sides, answer }) {
  const choice = el(
    "div",
    { class: "switch", role: "group", "aria-label": t("walk.of") },
    sides.length > 1 &&
      sides.map((each) =>
        el("label", {},
          el("input", { type: "radio", name: "walk", value: each, checked: each === side, on: { change: () => change({ walk: each }) } }),
          el("span", {}, state[each])),
      ),
  );
  return [
    el("div", { class: "walk-head" }, el("h2", { id: "walk-title" }, t("walk")), sides.length > 1 ? choice : el("p", { class: "meta" }, answer.model)),
    el("p", { class: "hint" }, t("walk.hint"), " ", t("walk.detail")),
  ];
}

function legend(levels) {
  const present = (name) => levels.some((level) => level.prefixes.some((prefix) => typeof prefix[name] === "number"));
  const states = Object.keys(MARKS).map((name) => el("li", { class: name }, el("span", { class: "mark", "aria-hidden": "true" }, MARKS[name]), t(`walk.${name}`)));
  const bars = present("guide")
    ? ["model", "guide"].map((name) => el("li", {}, el("span", { class: `sample ${name}`, "aria-hidden": "true" }), t(`walk.${name}`)))
    : [];
  return el("ul", { class: "legend", "aria-label": t("walk.legend"), title: t("walk.bars") }, states, bars);
}

function toggle(section, total) {
  const press = () => {
    isWhole = !isWhole;
    showWalk(section, drawn);
    section.querySelector(".more").focus();
  };
  return el("button", { type: "button", class: "more", on: { click: press } }, isWhole ? t("walk.fewer") : t("walk.all", { count: total }));
}

/** Return the prefixes of a level that are shown, best first: those on the way to the list, and the best others. */
function selected(level, targets) {
  const ways = new Set(targets.map((target) => target.codes.slice(0, level.level).join(",")));
  const counts = { kept: 0, pruned: 0, cut: 0 };
  const byScore = [...level.prefixes].sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity));
  const numWays = byScore.filter((prefix) => ways.has(prefix.codes.join(","))).length;
  const limits = window.matchMedia("(max-width: 45rem)").matches ? SHOWN_NARROW : SHOWN;
  const room = { ...limits, kept: Math.max(0, limits.kept - numWays) };
  return byScore
    .map((prefix) => ({ ...prefix, isWay: ways.has(prefix.codes.join(",")) }))
    .filter((prefix) => isWhole || prefix.isWay || ++counts[prefix.state] <= room[prefix.state]);
}

function column(level, targets, model) {
  const prefixes = selected(level, targets);
  const measure = measureOf(level.prefixes);
  const cut = level.cut_by_constraint ? el("span", { class: "count" }, t("walk.cutCount", { count: number(level.cut_by_constraint) })) : null;
  return el(
    "section",
    { class: "column", "aria-label": t("walk.level", { level: level.level }) },
    el("h3", {}, t("walk.level", { level: level.level }), cut),
    el("ul", {}, prefixes.map((prefix) => row(prefix, measure, model))),
  );
}

/**
 * Return how the values of a level are shown. They are logarithms of probabilities, and shown as these; a search that
 * takes scores as they are has values above 0, too, which are shown as numbers. A value that is missing is 0.
 */
function measureOf(prefixes) {
  const isGuided = prefixes.some((prefix) => typeof prefix.model === "number");
  const names = isGuided ? ["model", "guide"] : ["score"];
  const values = prefixes.flatMap((prefix) => [...names, "score"].map((name) => prefix[name])).filter((value) => typeof value === "number");
  const areScores = values.some((value) => value > 1e-6);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const lowest = low - (high - low) / 20;
  return {
    names,
    part: (value) => {
      if (typeof value !== "number") return 0;
      return areScores ? (value - lowest) / (high - lowest || 1) : Math.exp(value - high);
    },
    text: (value) => (areScores ? number(value ?? 0, 2) : percent(typeof value === "number" ? Math.exp(value) : 0)),
  };
}

function row(prefix, measure, model) {
  const codes = prefix.codes.join(",");
  const stateName = t(`walk.${prefix.state}`);
  const bars = measure.names.map((name) =>
    el("span", { class: name === "guide" ? "bar-guide" : "bar-model", style: { "--share": measure.part(prefix[name]) } }),
  );
  const title = [
    `${prefix.codes.join(" · ")}: ${stateName}`,
    ...(measure.names.length > 1 ? measure.names.map((name) => `${t(`walk.${name}`)} ${measure.text(prefix[name])}`) : []),
    ...(prefix.titles ?? []),
  ].join("\n");
  const press = () => {
    marked = marked === codes ? "" : codes;
  };
  return el(
    "li",
    {},
    el(
      "button",
      {
        type: "button", class: `prefix ${prefix.state}${prefix.isWay ? " way" : ""}`, "data-codes": codes, title,
        "aria-pressed": String(marked === codes), on: { click: press, dblclick: () => browse(model, codes) },
      },
      el("span", { class: "mark", "aria-hidden": "true" }, MARKS[prefix.state]),
      el("span", { class: "hidden-text" }, `${t("walk.prefix", { codes: prefix.codes.join(" "), state: stateName })}. `),
      el("span", { class: "code", "aria-hidden": "true" },
        prefix.codes.length > 1 ? el("span", { class: "former" }, `${prefix.codes.slice(0, -1).join("·")}·`) : null,
        String(prefix.codes.at(-1))),
      el("span", { class: "bars", "aria-hidden": "true" }, bars),
      el("span", { class: "value" }, measure.text(prefix.score)),
      prefix.titles?.length ? el("span", { class: "example" }, prefix.titles[0]) : null,
    ),
  );
}

const browse = (model, codes) => change({ view: "catalogue", model, codes }, { push: true });

function itemColumn(targets) {
  return el(
    "section",
    { class: "column", "aria-label": t("walk.items") },
    el("h3", {}, t("walk.items")),
    el(
      "ol",
      {},
      targets.map(({ item, place, codes }) =>
        el("li", {},
          el("button", { type: "button", class: "prefix listed way", "data-codes": `${codes.join(",")},item`, on: { click: () => openItem(item.item_id) } },
            el("span", { class: "code" }, place + 1),
            el("span", { class: "name" }, item.title))),
      ),
    ),
  );
}

/** Let a prefix that is pointed at, focused or marked light up with what leads to it and what follows from it. */
function follow(board, rows) {
  const isRelated = (first, second) => `${first},`.startsWith(`${second},`) || `${second},`.startsWith(`${first},`);
  const light = (codes) => {
    board.classList.toggle("following", Boolean(codes));
    for (const element of board.querySelectorAll("[data-codes]")) element.classList.toggle("lit", Boolean(codes) && isRelated(element.dataset.codes, codes));
  };
  const settle = () => light(rows.some((row) => row.dataset.codes === marked) ? marked : "");
  for (const element of rows) {
    for (const event of ["pointerenter", "focus"]) element.addEventListener(event, () => light(element.dataset.codes));
    for (const event of ["pointerleave", "blur"]) element.addEventListener(event, settle);
    element.addEventListener("keydown", (event) => step(event, element, board));
    element.addEventListener("click", () => {
      for (const each of rows) if (each.hasAttribute("aria-pressed")) each.setAttribute("aria-pressed", String(each.dataset.codes === marked));
    });
  }
  settle();
}

/** Move by arrow keys: up and down within a column, left to the parent, right to the first child. */
function step(event, element, board) {
  const codes = element.dataset.codes;
  const inColumn = [...element.closest(".column").querySelectorAll("[data-codes]")];
  const place = inColumn.indexOf(element);
  const all = [...board.querySelectorAll(".column [data-codes]")];
  const target = {
    ArrowUp: () => inColumn[place - 1],
    ArrowDown: () => inColumn[place + 1],
    ArrowLeft: () => all.find((each) => each.dataset.codes === codes.split(",").slice(0, -1).join(",")),
    ArrowRight: () => all.find((each) => each.dataset.codes.startsWith(`${codes},`)),
  }[event.key]?.();
  if (!target) return;
  event.preventDefault();
  target.focus();
}

/** Draw a line from each row to its parent in the column before it. */
function draw(board, lines, rows) {
  const box = board.getBoundingClientRect();
  const byCodes = new Map(rows.map((row) => [row.dataset.codes, row]));
  const isNarrow = getComputedStyle(lines).display === "none";
  fill(
    lines,
    isNarrow ? [] : rows.map((row) => {
      const codes = row.dataset.codes.split(",").slice(0, -1).join(",");
      const parent = byCodes.get(codes);
      if (!parent) return null;
      const [from, to] = [parent.getBoundingClientRect(), row.getBoundingClientRect()];
      const [x, y] = [from.right - box.left, from.top + from.height / 2 - box.top];
      const [u, v] = [to.left - box.left, to.top + to.height / 2 - box.top];
      const kind = ["pruned", "cut"].find((name) => row.classList.contains(name)) ?? "kept";
      return svg("path", {
        d: `M${x} ${y}C${(x + u) / 2} ${y} ${(x + u) / 2} ${v} ${u} ${v}`,
        class: `${kind}${row.classList.contains("way") ? " way" : ""}${row.classList.contains("lit") ? " lit" : ""}`,
        "data-codes": row.dataset.codes,
      });
    }),
  );
}
