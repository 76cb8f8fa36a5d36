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
let knownFields = new Set(); // fields of a request for a list, as the server describes its API

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

/** Read which fields the server knows, so that the page asks for nothing that would be refused. */
export async function readFields() {
  const description = await get("openapi.json");
  knownFields = new Set(Object.keys(description.components?.schemas?.RecommendBody?.properties ?? {}));
}

/** Return the fields that the server knows. */
export const known = (fields) => Object.fromEntries(Object.entries(fields).filter(([name]) => knownFields.has(name)));

export const isKnown = (field) => knownFields.has(field);
