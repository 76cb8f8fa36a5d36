// Texts of the page in the chosen language.

import { english } from "./text.en.js";
import { chinese } from "./text.zh.js";
import { memory } from "./dom.js";

const TEXTS = { en: english, zh: chinese };

export let language = memory.get("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
if (!(language in TEXTS)) language = "en";

export function setLanguage(name) {
  language = name;
  memory.set("language", name);
}

/** Return a text; {name} in it is replaced by values.name. A text that depends on a number has a form for one. */
export function t(key, values = {}) {
  const texts = TEXTS[language];
  const text = (values.count === 1 && texts[`${key}.one`]) || texts[key];
  if (text === undefined) throw new Error(`no text ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** Fill in the texts of the elements that name one: data-text for contents, data-label for screen readers. */
export function translate(root) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) element.setAttribute("aria-label", t(element.dataset.label));
}

const locale = () => (language === "zh" ? "zh-CN" : "en-GB");

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value).replace("-", "−");

/** Return a share as per cent, with two significant digits. */
export function percent(share) {
  if (share > 0 && share < 0.0001) return `< ${percent(0.0001)}`;
  return new Intl.NumberFormat(locale(), { style: "percent", maximumSignificantDigits: 2 }).format(share);
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString(locale());

export const day = (milliseconds) =>
  new Date(milliseconds).toLocaleDateString(locale(), { year: "numeric", month: "short", day: "numeric" });
