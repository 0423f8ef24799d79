// The web page: one picture at a time goes to /embed, /preprocess and /search.

const $ = (id) => document.getElementById(id);
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

/** The picture on show, and its vector once it is known. */
let picture = null;
let vector = null;
/** Counts pictures, so that a slow answer to an earlier one is not shown. */
let turn = 0;

/** An error reply of the server, or no reply at all. */
class Problem extends Error {
  constructor({ title, detail, code, request_id: requestId }) {
    super(detail);
    Object.assign(this, { title, code, requestId });
  }
}

/** The key that calls are made with, in this tab alone. */
const KEY = "latentd-key";
const key = () => sessionStorage.getItem(KEY);

async function ask(path, { headers = {}, ...options } = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: key() ? { ...headers, authorization: `Bearer ${key()}` } : headers });
  } catch {
    throw new Problem({ title: "No answer", detail: "The server cannot be reached. Is it still running?", code: "unreachable" });
  }
  if (reply.ok) return reply;
  if (reply.status === 401) askForKey();
  const problem = await reply.json().catch(() => ({}));
  throw new Problem({ title: reply.statusText || `Status ${reply.status}`, detail: "The server gave no reason.", code: String(reply.status), ...problem });
}

function askForKey() {
  $("key-open").hidden = false;
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  for (const id of ["key-form", "problem"]) $(id).hidden = true;
  if (picture) choose(picture);
  showModel().catch(showProblem);
}

function forgetKey() {
  sessionStorage.removeItem(KEY);
  $("key-form").hidden = true;
}

function post(path, file, accept) {
  const headers = { "content-type": file.type.startsWith("image/") ? file.type : "application/octet-stream" };
  if (accept) headers.accept = accept;
  return ask(path, { method: "POST", headers, body: file });
}

function showProblem(error) {
  const about = [error.code, error.requestId && `request ${error.requestId}`].filter(Boolean).join(" · ");
  $("problem").replaceChildren(element("strong", { textContent: error.title ?? "Something went wrong" }), error.message, element("br"), element("small", { textContent: about }));
  $("problem").hidden = false;
}

async function showModel() {
  const { model, device, store, ready } = await (await ask("/info")).json();
  const facts = { encoder: model.name, contract: model.contract, size: `${model.dim} numbers`, device: device.fallback ? `${device.used} (fell back)` : device.used, items: store.items ?? "–" };
  if (!ready) facts.state = "not ready";
  $("model").replaceChildren(...Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
}

async function choose(file) {
  if (!file) return;
  const mine = ++turn;
  const stale = () => mine !== turn;
  picture = file;
  vector = null;
  for (const id of ["problem", "vector", "near", "seen", "add", "empty"]) $(id).hidden = true;
  $("added").value = "";
  show($("picture"), file);
  $("picture").onerror = () => { $("picture").hidden = true; $("hint").hidden = false; };
  $("picture").hidden = false;
  $("hint").hidden = true;
  $("drop").classList.add("busy");
  try {
    const began = performance.now();
    const reply = await post("/embed", file);
    const { model, contract, dim, results: [{ embedding }] } = await reply.json();
    const took = performance.now() - began;
    if (stale()) return;
    vector = { model, contract, embedding };
    showVector(embedding, `${dim} numbers · ${contract}`, reply.headers.get("server-timing"), took);
    $("id").value ||= suggestedId(file);
    $("add").hidden = false;
    await Promise.all([showSeen(file, stale), showNeighbours(stale)]);
  } catch (error) {
    if (!stale()) showProblem(error);
  } finally {
    if (!stale()) $("drop").classList.remove("busy");
  }
}

/** Shows a file in an image and lets go of the one before. */
function show(image, blob) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
}

const suggestedId = (file) => (file.name ?? "").replace(/\.[^.]*$/, "").replace(/[^\w.-]+/g, "-").slice(0, 64) || "picture";

function showVector(values, about, timing, took) {
  $("vector-about").textContent = about;
  $("preview").textContent = `[${values.slice(0, 12).map((value) => value.toFixed(4)).join(", ")}, …]`;
  drawStrip($("strip"), values);
  const phases = [...(timing ?? "").matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]);
  const entry = ([name, ms]) => element("li", {}, `${name} `, element("b", { textContent: `${ms.toFixed(2)} ms` }));
  $("timing").replaceChildren(...phases.map(entry), entry(["round trip", took]));
  $("vector").hidden = false;
}

/** One column per number: violet above zero, amber below, stronger further away. */
function drawStrip(canvas, values) {
  canvas.width = values.length;
  canvas.height = 1;
  const largest = Math.max(...values.map(Math.abs)) || 1;
  const context = canvas.getContext("2d");
  values.forEach((value, column) => {
    const strength = Math.sqrt(Math.abs(value) / largest);
    context.fillStyle = value >= 0 ? `rgba(91, 91, 214, ${strength})` : `rgba(232, 137, 12, ${strength})`;
    context.fillRect(column, 0, 1, 1);
  });
}

async function showSeen(file, stale) {
  const seen = await (await post("/preprocess", file, "image/png")).blob();
  if (stale()) return;
  const image = $("seen-image");
  image.onload = () => { $("seen-size").textContent = `${image.naturalWidth} × ${image.naturalHeight} pixels`; };
  show(image, seen);
  $("seen").hidden = false;
}

const collection = () => $("collection").value.trim() || "default";

async function showNeighbours(stale = () => false) {
  if (!vector) return;
  const query = { vector: vector.embedding, contract: vector.contract, k: 12 };
  let found = [];
  try {
    const reply = await ask(`/search?collection=${encodeURIComponent(collection())}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(query) });
    found = (await reply.json()).neighbours;
  } catch (error) {
    // An index without its first item is empty, not wrong.
    if (error.code !== "unknown_collection") throw error;
  }
  if (stale()) return;
  $("near-about").textContent = found.length ? `in ${collection()}` : `the collection ${collection()} is empty: add this picture to it`;
  $("neighbours").replaceChildren(...found.map(neighbour));
  $("near").hidden = false;
}

/** An image element sends no key, so that with one the file is asked for here. */
async function showThumbnail(image, path) {
  if (!key()) { image.src = path; return; }
  const file = await (await ask(path)).blob();
  image.onload = () => URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
}

function neighbour({ id, score, metadata }) {
  const figure = element("figure");
  const image = element("img", { alt: "", loading: "lazy" });
  image.onerror = () => figure.replaceChildren("∅");
  showThumbnail(image, `/items/${encodeURIComponent(id)}/image?collection=${encodeURIComponent(collection())}`).catch(image.onerror);
  figure.append(image);
  const meter = element("meter", { min: 0, max: 1, value: Math.max(0, score) });
  const about = metadata && Object.keys(metadata).length ? JSON.stringify(metadata) : "";
  return element("li", {}, figure,
    element("span", { className: "id", textContent: id, title: id }),
    element("span", { className: "score" }, score.toFixed(4), meter),
    element("div", { className: "metadata", textContent: about, title: about }));
}

async function add(event) {
  event.preventDefault();
  if (!picture) return;
  const button = $("add").querySelector("button");
  button.disabled = true;
  $("problem").hidden = true;
  try {
    const path = `/items/${encodeURIComponent($("id").value)}?collection=${encodeURIComponent(collection())}`;
    const headers = { "content-type": picture.type.startsWith("image/") ? picture.type : "application/octet-stream" };
    await ask(path, { method: "PUT", headers, body: picture });
    $("added").value = `added as ${$("id").value}`;
    await Promise.all([showNeighbours(), showModel()]);
  } catch (error) {
    showProblem(error);
  } finally {
    button.disabled = false;
  }
}

async function copy() {
  if (!vector) return;
  await navigator.clipboard.writeText(JSON.stringify(vector));
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy as JSON"; }, 1500);
}

$("key-form").addEventListener("submit", useKey);
$("key-forget").addEventListener("click", forgetKey);
$("key-open").addEventListener("click", askForKey);
$("key-open").hidden = !key();
$("file").addEventListener("change", ({ target }) => { $("id").value = ""; choose(target.files[0]); });
$("add").addEventListener("submit", add);
$("collection").addEventListener("change", () => showNeighbours().catch(showProblem));
$("copy").addEventListener("click", () => copy().catch(showProblem));
addEventListener("paste", ({ clipboardData }) => {
  const file = [...clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) { $("id").value = ""; choose(file); }
});
for (const type of ["dragenter", "dragover"]) addEventListener(type, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", ({ relatedTarget }) => { if (!relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  $("id").value = "";
  choose(event.dataTransfer.files[0]);
});
showModel().catch(showProblem);
