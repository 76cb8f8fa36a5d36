// A live view of the answers of the server.

import { get } from "./api.js";
import { byId, el, fill, svg } from "./dom.js";
import { onChange, state } from "./state.js";
import { clock, number, t } from "./text.js";

const EVERY = 2000; // milliseconds between two looks
const SHOWN = 40; // rows of the table
const STORED = 500;
const PLOTTED = 200; // dots
const SIZE = { height: 120, left: 44, bottom: 6 }; // pixels
let answers = [];
let isPaused = false;
let failure = "";
let view = {};

/** Build the view, in the present language. */
export function buildTraffic() {
  const pause = el("button", { type: "button", id: "pause" });
  const label = () => {
    pause.textContent = t(isPaused ? "traffic.resume" : "traffic.pause");
    pause.setAttribute("aria-pressed", String(isPaused));
  };
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    label();
    if (!isPaused) look();
  });
  label();
  view = { figures: el("dl", { class: "figures" }), chart: el("div", { class: "chart" }), table: el("div", { class: "answers-table" }) };
  fill(
    byId("view-traffic"),
    el("div", { class: "tree-head" }, el("h2", {}, t("traffic.title")), pause),
    el("p", { class: "hint" }, t("traffic.hint")),
    view.figures,
    view.chart,
    view.table,
  );
  show();
  look();
}

onChange((changed) => changed.has("view") && look());
setInterval(() => look(), EVERY);

async function look() {
  if (state.view !== "traffic" || isPaused || document.hidden || !view.table) return;
  try {
    const last = answers.at(-1)?.number ?? 0;
    let news = await get("v1/traffic", { after: last, limit: STORED });
    if (!news.length && last) {
      // The numbers of a server that was started again begin at 1.
      const [newest] = await get("v1/traffic", { limit: 1 });
      if (!newest || newest.number < last) {
        answers = [];
        news = await get("v1/traffic", { limit: STORED });
      }
    }
    failure = "";
    answers = [...answers, ...news].slice(-STORED);
  } catch (error) {
    failure = error.message || t("offline");
  }
  show();
}

function show() {
  const now = Date.now() / 1000;
  const recent = answers.filter((answer) => answer.time > now - 60);
  const times = recent.map((answer) => answer.milliseconds).sort((a, b) => a - b);
  const at = (share) => (times.length ? number(times[Math.min(times.length - 1, Math.floor(share * times.length))], 1) : "–");
  fill(
    view.figures,
    [
      [number(recent.length / 60, 2), "traffic.rate"],
      [at(0.5), "traffic.median"],
      [at(0.95), "traffic.slow"],
      [number(recent.filter((answer) => answer.fallback_reason).length), "traffic.fallbacks"],
    ].map(([value, key]) => el("div", {}, el("dd", {}, value), el("dt", {}, t(key)))),
  );
  if (!answers.length) {
    fill(view.chart);
    fill(view.table, el("p", { class: "hint" }, failure || t("traffic.none")));
    return;
  }
  fill(view.chart, chart(answers.slice(-PLOTTED)));
  fill(view.table, failure ? el("p", { class: "note", role: "alert" }, failure) : null, table(answers.slice(-SHOWN).reverse()));
}

/** Return a dot for each answer: the newest at the right, its time as height. */
function chart(shown) {
  const { height, left, bottom } = SIZE;
  const width = view.chart.clientWidth || 640;
  const top = niceAbove(Math.max(...shown.map((answer) => answer.milliseconds)));
  const y = (milliseconds) => (height - bottom) * (1 - milliseconds / top) + 4;
  const x = (place) => left + ((width - left - 6) * (PLOTTED - shown.length + place)) / PLOTTED;
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height + 4}`, role: "img", "aria-label": t("traffic.chart") },
    [0, top / 2, top].map((value) => [
      svg("line", { x1: left, x2: width, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, number(value, top < 4 ? 1 : 0)),
    ]),
    shown.map((answer, place) =>
      svg("circle", { cx: x(place), cy: y(answer.milliseconds), r: 2.6, class: answer.fallback_reason ? "fallback" : "good" }, svg("title", {}, `${answer.model}: ${answer.milliseconds} ms`)),
    ),
  );
}

function niceAbove(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 0.1)));
  return unit * ([1, 2, 4, 10].find((factor) => factor * unit >= value) ?? 10);
}

function table(rows) {
  const heads = ["time", "model", "route", "ms", "titles"];
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, heads.map((key) => el("th", { scope: "col", class: key }, t(`traffic.${key}`))))),
    el(
      "tbody",
      {},
      rows.map((answer) =>
        el(
          "tr",
          {},
          el("td", { class: "time" }, clock(answer.time)),
          el("td", { class: "model" }, answer.model),
          el("td", { class: "route" }, t(`route.${answer.route}`)),
          el("td", { class: "ms" }, number(answer.milliseconds, 1)),
          el("td", { class: "titles" }, answer.fallback_reason ? el("span", { class: "tag" }, `${t("fallback")}: ${answer.fallback_reason}`) : null, answer.titles.map((title) => el("span", {}, title))),
        ),
      ),
    ),
  );
}
