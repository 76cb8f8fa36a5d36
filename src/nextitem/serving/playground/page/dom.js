// Build elements. Text is always inserted as text nodes, so nothing of a catalogue is ever read as HTML.

/**
 * Return a new element.
 * @param {string} tag name of the element
 * @param {object} options attributes; `on` contains listeners, `style` custom properties, and false leaves one out
 * @param {...(Node|string|number|null|undefined|false|Array)} children nodes or texts
 */
export function el(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  set(element, options);
  add(element, children);
  return element;
}

/** Return a new SVG element. */
export function svg(tag, options = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, options);
  add(element, children);
  return element;
}

function set(element, options) {
  for (const [name, value] of Object.entries(options)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") for (const [key, number] of Object.entries(value)) element.style.setProperty(key, number);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Replace everything inside an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Return a function that runs `action` after a pause without further calls. */
export function afterPause(milliseconds, action) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

/** Read or write a choice that the browser remembers, if it may. */
export const memory = {
  get(name, storage = "localStorage") {
    try {
      return window[storage].getItem(`nextitem-${name}`);
    } catch {
      return null;
    }
  },
  set(name, value, storage = "localStorage") {
    try {
      if (value === null) window[storage].removeItem(`nextitem-${name}`);
      else window[storage].setItem(`nextitem-${name}`, value);
    } catch {
      // It is not remembered, but works until the page is closed.
    }
  },
};
