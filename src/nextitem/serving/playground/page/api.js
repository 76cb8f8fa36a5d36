// Calls of the server's API. Every failure is an ApiError with a status and one line of text.

import { memory } from "./dom.js";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let token = memory.get("token", "sessionStorage") ?? "";
let askForToken = () => {};
const refusedFields = new Set(); // optional fields of a request that this server does not know

export function setToken(value) {
  token = value;
  memory.set("token", value || null, "sessionStorage");
}

export function onTokenNeeded(listener) {
  askForToken = listener;
}

async function call(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) askForToken(token !== "");
  throw new ApiError(response.status, answer.error ?? response.statusText);
}

/** Return the answer of a route; undefined and empty parameters are left out. */
export function get(path, parameters = {}, options = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const part of Array.isArray(value) ? value : [value]) {
      if (part !== undefined && part !== null && part !== "") query.append(name, part);
    }
  }
  const text = query.toString();
  return call(text ? `${path}?${text}` : path, options);
}

export function post(path, body, options = {}) {
  return call(path, {
    ...options,
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

/** Ask for a list. Optional fields that the server does not know are left out from then on. */
export async function recommend(body, optional, options = {}) {
  for (;;) {
    const used = Object.fromEntries(Object.entries(optional).filter(([name]) => !refusedFields.has(name)));
    try {
      return await post("v1/recommend", { ...body, ...used }, options);
    } catch (error) {
      const field = Object.keys(used).find((name) => error.status === 422 && error.message.startsWith(`${name}: Extra`));
      if (!field) throw error;
      refusedFields.add(field);
    }
  }
}

export const isRefused = (field) => refusedFields.has(field);
