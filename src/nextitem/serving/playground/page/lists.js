// Two models' lists side by side, for the same request.

import { post } from "./api.js";
import { afterPause, byId, el, fill } from "./dom.js";
import { addToHistory, describe, exclude, lookUp, openItem, server, titleOf } from "./items.js";
import { isAskable, requestFor } from "./request.js";
import { change, NONE, onChange, state } from "./state.js";
import { number, percent, t } from "./text.js";
import { showWalk } from "./walk.js";

const SIDES = ["left", "right"];
const panes = { left: {}, right: {} }; // of each side: its elements, its last answer, its running request
const REASONS = 2; // neighbours that are named
const TITLE = 26; // characters of their titles
const LEAST = 0.05; // share of a neighbour that is named

/** Build both panes, in the present language, and fill them from their last answers. */
export function buildLists() {
  fill(byId("panes"), SIDES.map(buildPane));
  for (const side of SIDES) show(side);
}

function buildPane(side) {
  const pane = panes[side];
  pane.select = el(
    "select",
    { id: `${side}-model`, "aria-label": t(side), on: { change: () => change({ [side]: pane.select.value }) } },
    side === "right" ? el("option", { value: NONE, selected: state.right === NONE }, t("none")) : null,
    server.models.map((model) => el("option", { value: model.name, selected: state[side] === model.name }, model.name)),
  );
  pane.meta = el("p", { class: "meta" });
  pane.notes = el("div", { class: "notes" });
  pane.list = el("ol", { class: "list", id: `${side}-list` });
  pane.more = el("button", { type: "button", class: "more", hidden: true, on: { click: () => askMore(side) } }, t("more"));
  pane.section = el("section", { class: `pane ${side}`, "aria-label": t(side) }, el("div", { class: "pane-head" }, pane.select, pane.meta), pane.notes, pane.list, pane.more);
  return pane.section;
}

const askSoon = afterPause(60, () => SIDES.forEach(ask));
const UNRELATED = ["view", "walk", "model", "codes"];

onChange((changed) => {
  if (!panes.left.section) return;
  const names = [...changed].filter((name) => !UNRELATED.includes(name));
  const sides = names.filter((name) => SIDES.includes(name));
  for (const side of sides) panes[side].select.value = state[side];
  if (names.length && names.length === sides.length) sides.forEach(ask);
  else if (names.length) askSoon();
  if (changed.has("walk") && !names.length) drawWalk();
});
document.addEventListener("ask-again", () => SIDES.forEach(ask));

/** Ask for the list of a side; a running request is given up. */
export async function ask(side) {
  const pane = panes[side];
  pane.controller?.abort();
  if (state[side] === NONE || !isAskable()) {
    Object.assign(pane, { answer: null, error: null });
    show(side);
    return;
  }
  const controller = (pane.controller = new AbortController());
  const body = requestFor(state[side]);
  pane.section.setAttribute("aria-busy", "true");
  try {
    const started = performance.now();
    const answer = await post("v1/recommend", body, { signal: controller.signal });
    const milliseconds = performance.now() - started;
    const items = await lookUp(answer.items.map((item) => item.item_id), answer.model, { signal: controller.signal });
    Object.assign(pane, { answer, milliseconds, items, body, error: null });
    announce(t("list.done", { count: answer.items.length, model: answer.model, ms: Math.round(milliseconds) }));
  } catch (error) {
    if (error.name === "AbortError") return;
    Object.assign(pane, { answer: null, error });
  }
  if (controller !== pane.controller) return;
  pane.section.removeAttribute("aria-busy");
  SIDES.forEach(show);
}

async function askMore(side) {
  const pane = panes[side];
  const former = pane.answer;
  try {
    const next = await post("v1/recommend", { ...pane.body, page: former.next_page });
    const items = await lookUp(next.items.map((item) => item.item_id), next.model);
    if (pane.answer !== former) return;
    const explanation = former.explanation && {
      ...former.explanation,
      items: [...(former.explanation.items ?? []), ...(next.explanation?.items ?? [])],
    };
    pane.answer = { ...former, items: [...former.items, ...next.items], next_page: next.next_page, explanation };
    for (const [id, item] of items) pane.items.set(id, item);
  } catch (error) {
    pane.error = error;
  }
  const place = former.items.length;
  SIDES.forEach(show);
  pane.list.children[place]?.focus();
}

const announce = (text) => {
  byId("status").textContent = text;
};

function show(side) {
  const pane = panes[side];
  const { answer, error } = pane;
  pane.section.classList.toggle("empty", state[side] === NONE);
  pane.more.hidden = !answer?.next_page;
  if (!answer) {
    fill(pane.meta);
    fill(pane.notes, error ? el("p", { class: "note", role: "alert" }, error.status ? error.message : t("offline")) : null);
    fill(pane.list);
    if (!error && side === "left" && !isAskable()) fill(pane.notes, el("p", { class: "hint" }, t("ask.history")));
  } else {
    fill(
      pane.meta,
      el("span", { title: t("version", { version: answer.version }) }, t("milliseconds", { count: number(pane.milliseconds, pane.milliseconds < 10 ? 1 : 0) })),
    );
    fill(pane.notes, notes(answer));
    const other = panes[side === "left" ? "right" : "left"].answer;
    const ranks = new Map(other?.items.map((item, place) => [String(item.item_id), place + 1]));
    pane.list.setAttribute("aria-label", t("list.label", { model: answer.model }));
    const former = pane.list.contains(document.activeElement) ? document.activeElement.closest("li") : null;
    const formerPlace = [...pane.list.children].indexOf(former);
    fill(pane.list, answer.items.map((item, place) => row(side, item, place, other ? ranks : null)));
    const rows = [...pane.list.children];
    if (former) (rows.find((each) => each.dataset.item === former.dataset.item) ?? rows[Math.min(formerPlace, rows.length - 1)])?.focus();
  }
  showOverlap();
  drawWalk();
}

function showOverlap() {
  const [left, right] = SIDES.map((side) => panes[side].answer);
  if (!left || !right) {
    byId("overlap").textContent = "";
    return;
  }
  const ids = new Set(left.items.map((item) => String(item.item_id)));
  const both = right.items.filter((item) => ids.has(String(item.item_id))).length;
  byId("overlap").textContent = t("overlap", { both, count: Math.max(left.items.length, right.items.length) });
}

function notes(answer) {
  const lines = [];
  if (answer.fallback) lines.push(`${t("fallback")}: ${t(`fallback.${answer.fallback_reason ?? "error"}`)}`);
  if (answer.relaxed?.length) lines.push(t("relaxed", { list: answer.relaxed.join("; ") }));
  const unknown = [...(answer.skipped ?? []), ...(answer.unknown_exclusions ?? [])];
  if (unknown.length) lines.push(t("skipped", { list: unknown.join(", ") }));
  if (answer.guided === false && !answer.fallback) lines.push(t("unguided"));
  if (!answer.items.length) lines.push(t("list.empty"));
  return lines.map((line) => el("p", { class: "note" }, line));
}

function row(side, item, place, ranks) {
  const pane = panes[side];
  const id = String(item.item_id);
  const rank = ranks?.get(id);
  const act = (action) => (event) => {
    event.stopPropagation();
    action(id);
  };
  const comparison = ranks ? el("span", { class: rank ? "rank" : "rank alone", title: t(rank ? "rank.also.long" : "rank.only.long", { rank }) }, t(rank ? "rank.also" : "rank.only", { rank })) : null;
  return el(
    "li",
    { tabindex: "-1", "data-item": id },
    el("span", { class: "place", "aria-hidden": "true" }, place + 1),
    el(
      "div",
      { class: "what" },
      el("button", { type: "button", class: "link title", on: { click: act(openItem) } }, item.title),
      el("p", { class: "about" }, describe(pane.items.get(id) ?? { item_id: id })),
      reasons(pane.answer, item),
    ),
    el(
      "div",
      { class: "side" },
      el("span", { class: "score", title: t("score", { score: item.score }) }, number(item.score, 3)),
      comparison,
      el(
        "div",
        { class: "acts" },
      el("button", { type: "button", class: "act", title: t("item.add"), "aria-label": `${t("item.add")}: ${item.title}`, on: { click: act(addToHistory) } }, "+"),
      el("button", { type: "button", class: "act", title: t("item.exclude"), "aria-label": `${t("item.exclude")}: ${item.title}`, on: { click: act(exclude) } }, "×"),
      ),
    ),
  );
}

/** Return lines with the events of the history that carry an item, its channel and stages, and the chance with which it was drawn. */
function reasons(answer, item) {
  const explained = answer.explanation?.items ?? [];
  const own = explained.find((each) => String(each.item_id) === String(item.item_id)) ?? {};
  const neighbours = (own.neighbours ?? []).filter((each) => each.share >= LEAST).slice(0, REASONS);
  const channel = item.channel ?? own.channel;
  const names = neighbours.map((each) => [each.title ?? titleOf(each.item_id), percent(each.share)]);
  const stages = (own.stages ?? []).map((stage) => `${stage.stage} ${stage.position}`).join(" → ");
  const way = [channel && t("channel", { name: channel }), stages].filter(Boolean).join(" · ");
  const chance = typeof item.propensity === "number" && item.propensity < 1 ? t("propensity", { share: percent(item.propensity) }) : "";
  const short = (title) => (title.length > TITLE ? `${title.slice(0, TITLE - 1).trimEnd()}…` : title);
  return [
    names.length
      ? el("p", { class: "reasons", title: names.map(([title, share]) => `${title} (${share})`).join("\n") }, `${t("because")} ${names.map(([title, share]) => `${short(title)} (${share})`).join(", ")}`)
      : null,
    way ? el("p", { class: "reasons" }, way) : null,
    chance ? el("p", { class: "reasons" }, chance) : null,
  ];
}

function drawWalk() {
  const sides = SIDES.filter((side) => panes[side].answer?.explanation?.levels?.length);
  const chosen = sides.includes(state.walk) ? state.walk : sides[0];
  showWalk(byId("walk"), chosen && { side: chosen, sides, answer: panes[chosen].answer, items: panes[chosen].items });
}

/** Move between the rows of the lists by keys; return whether the key did anything. */
export function listKey(key) {
  const current = document.activeElement?.closest?.(".list > li");
  const side = current?.parentElement === panes.right.list ? "right" : "left";
  const rows = [...panes[side].list.children];
  const place = rows.indexOf(current);
  if (key === "j" || key === "k") {
    const next = rows[Math.min(Math.max(place + (key === "j" ? 1 : -1), 0), rows.length - 1)];
    next?.focus();
    return Boolean(next);
  }
  if (!current) return false;
  const id = current.dataset.item;
  if (key === "o") {
    const others = [...panes[side === "left" ? "right" : "left"].list.children];
    (others.find((each) => each.dataset.item === id) ?? others[Math.min(place, others.length - 1)])?.focus();
  } else if (key === "a") addToHistory(id);
  else if (key === "x") exclude(id);
  else if (key === "Enter" && document.activeElement === current) openItem(id);
  else return false;
  return true;
}
