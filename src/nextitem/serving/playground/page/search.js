// A field that searches items while one types, as a combobox with a list below it.

import { get } from "./api.js";
import { afterPause, el, fill } from "./dom.js";
import { describe } from "./items.js";
import { state } from "./state.js";
import { t } from "./text.js";

/**
 * Return a labelled search field.
 * @param {object} options `id`, `label`, `hint`, and `choose`, which is called with the chosen item
 */
export function searchBox({ id, label, hint, choose }) {
  const list = el("ul", { id: `${id}-list`, class: "suggestions", role: "listbox", "aria-label": label, hidden: true });
  const note = el("p", { class: "hint", role: "status" });
  const input = el("input", {
    id, type: "search", placeholder: hint, role: "combobox", autocomplete: "off", spellcheck: "false",
    "aria-expanded": "false", "aria-controls": list.id, "aria-autocomplete": "list",
  });
  let items = [];
  let active = -1;

  const close = () => {
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const mark = (place) => {
    list.children[active]?.setAttribute("aria-selected", "false");
    active = (place + items.length) % items.length;
    const option = list.children[active];
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", option.id);
  };
  const take = (place) => {
    if (!items[place]) return;
    choose(items[place]);
    input.value = "";
    note.textContent = "";
    close();
    input.focus();
  };
  const show = (answer) => {
    items = answer.items;
    note.textContent = answer.num_matches ? t("search.found", { count: answer.num_matches }) : t("search.none");
    const rows = items.map((item, place) =>
      el(
        "li",
        { id: `${id}-${place}`, role: "option", "aria-selected": "false", on: { mousedown: (event) => { event.preventDefault(); take(place); } } },
        el("span", { class: "title" }, item.title),
        el("span", { class: "about" }, describe(item)),
      ),
    );
    fill(list, rows);
    active = -1;
    list.hidden = !items.length;
    input.setAttribute("aria-expanded", String(items.length > 0));
  };
  let latest = 0;
  const search = afterPause(120, async () => {
    const text = input.value.trim();
    const turn = ++latest;
    if (!text) {
      note.textContent = "";
      close();
      return;
    }
    try {
      const answer = await get("v1/items", { search: text, limit: 12, model: state.left });
      if (turn === latest && input.value.trim() === text) show(answer);
    } catch (error) {
      note.textContent = error.message || t("offline");
    }
  });
  input.addEventListener("input", search);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !list.hidden) {
      close();
      event.stopPropagation();
    } else if (!list.hidden && items.length && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      mark(event.key === "ArrowDown" ? active + 1 : active < 0 ? items.length - 1 : active - 1);
      event.preventDefault();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (!list.hidden) take(active < 0 ? 0 : active);
    }
  });
  return el("div", { class: "search" }, el("label", { for: id }, label), input, list, note);
}
