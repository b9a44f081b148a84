/** A refusal of the server: one line, and the number of the region that it is about, or null. */
export class Refused extends Error {
  constructor(message, region = null) {
    super(message);
    this.region = region;
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("The server does not answer. Is spatext-app still running?");
  }
  if (response.ok) return response;
  const { error, region } = await response.json().catch(() => ({}));
  throw new Refused(error ?? `The server answered ${response.status}.`, region ?? null);
}

const json = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

const parsed = async (...call) => (await request(...call)).json();

export const fetchModel = () => parsed("/api/model");
export const fetchExample = (number) => parsed(`/api/examples/${number}`);
export const fetchJob = (id) => parsed(`/api/jobs/${id}`);
export const fetchScene = (id) => parsed(`/api/jobs/${id}/scene`);
export const submit = (order) => parsed("/api/jobs", json(order));
export const cancel = (id) => parsed(`/api/jobs/${id}`, { method: "DELETE" });
export const packScene = async (order) => (await request("/api/scene.zip", json(order))).blob();

export const readScene = (file) =>
  parsed("/api/scene", {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" },
    body: file,
  });

export const pictureOf = (id) => `/api/jobs/${id}/picture.png`;
export const archiveOf = (id) => `/api/jobs/${id}/scene.zip`;

export const eventsOf = (ids) =>
  new EventSource(`/api/events?${new URLSearchParams(ids.map((id) => ["job", id]))}`);
