// The dashboard: draws scans and jobs from the API, and asks again politely (ETag, pauses when hidden).

import { signedIn } from "./sign_in.js";

const BUSY_MS = 1000, IDLE_MS = 3000, HEALTH_MS = 10000, PAGE_SIZE = 24;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const TONE = {
  ready: "good", succeeded: "good", rejected: "bad", quarantined: "bad", failed: "bad",
  validating: "busy", running: "busy", cancelling: "busy", queued: "busy", waiting: "busy",
};
const $ = (id) => document.getElementById(id);

// ---- elements

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const chip = (state) => make("span", { className: `chip ${TONE[state] ?? ""}` }, state);
const soft = (...words) => make("p", { className: "soft" }, ...words);
const facts = (pairs) => make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
const trouble = (problem) => make("p", { className: "problem" }, make("strong", {}, `${problem.title}. `), problem.detail);

function button(text, action) {
  return make("button", { className: "button quiet", type: "button", onclick: action }, text);
}

// ---- words and numbers

const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
const whole = (value) => value.toLocaleString("en");

function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (value >= 1000 && step < units.length - 1) { value /= 1000; step += 1; }
  return `${number(value)} ${units[step]}`;
}

function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${number(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

const between = (start, end) => (new Date(end ?? Date.now()) - new Date(start)) / 1000;
const clock = (time) => new Date(time).toLocaleString();
const LABELS = {
  mb_s: "speed", seconds: "time", psnr: "PSNR", ssim: "SSIM", rmse: "RMSE", max_error: "largest error", number: "setting",
  voxel_bytes: "voxels", coded_bytes: "chunks", level_bytes: "chunks by level", stored_bytes: "on disk",
  pcr: "PCR", fcr: "FCR", fcr_executed: "FCR as executed", macs: "multiplications", p50_s: "median", p95_s: "95 %",
};
const worded = (name) => LABELS[name] ?? name.replace(/_(bytes|s|seconds|mm)$/, "").replaceAll("_", " ");

function valueInWords(name, value) {
  if (value === null) return /^(psnr|number)$/.test(name) ? "none" : "not known";
  if (Array.isArray(value)) {
    const joined = value.map((part) => valueInWords(name.replace(/_mm$/, ""), part)).join(", ");
    return name.endsWith("_mm") ? `${joined} mm` : joined;
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (/(^|_)bytes(_|$)/.test(name)) return bytes(value);
  if (/(^|_)ratio$/.test(name)) return `${number(value)}:1`;
  if (name === "mb_s") return `${number(value)} MB/s`;
  if (name === "psnr") return `${number(value)} dB`;
  if (/(^|_)(s|seconds)$/.test(name)) return duration(value);
  if (/(^|_)share(_|$)/.test(name)) return `${number(value * 100)} %`;
  return Number.isInteger(value) ? whole(value) : number(value);
}

const DETAILS = /digest$|volume_id$|^sha256$|^packages$|^method$|^settings$|^notice$|^warnings$|^notes$|^certificate$|^lineage$|^judged_rows$/;
const isTable = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** The plain entries of a result as pairs of words, nested objects in a row; provenance stays in the JSON. */
function resultInWords(result, prefix = "") {
  return Object.entries(result).flatMap(([name, value]) => {
    if (DETAILS.test(name)) return [];
    const label = `${prefix}${worded(name)}`;
    if (isTable(value)) return resultInWords(value, `${label}: `);
    if (!Array.isArray(value)) return [[label, valueInWords(name, value)]];
    if (!value.some(isTable)) return value.length ? [[label, valueInWords(name, value)]] : [];
    return value.map((part) => [label, resultInWords(part).map((pair) => pair.join(" ")).join(", ")]);
  });
}

const percent = (share) => `${number(share * 100)} %`;

function errorInWords({ rmse, psnr }) {
  if (rmse === null) return "not known";
  return psnr === null ? number(rmse) : `${number(rmse)} (${number(psnr)} dB)`;
}

/** What matters first of a volume, a file or a smaller model that a job made. */
const HEADLINES = {
  compress: (result) => {
    const psnr = result.psnr === null ? "no voxel has changed" : `PSNR ${number(result.psnr)} dB for a peak of ${number(result.peak)}`;
    return `${number(result.ratio)}:1 · ${psnr} · largest error ${number(result.max_error)}`;
  },
  decompress: (result) => `${bytes(result.source_bytes)} became ${bytes(result.stored_bytes)}, voxel for voxel`,
  denoise: (result) => `noise ${number(result.sigma)} (${result.estimated ? "estimated" : "as given"}) · `
    + `${percent(result.changed)} of the voxels changed, by ${number(result.removed)} in the root mean square of all`,
  complete: (result) => `${whole(result.gaps)} voxels filled, ${percent(result.share)} · `
    + `error at hidden voxels ${errorInWords(result.scattered)}, in hidden blocks ${errorInWords(result.blocks)}`,
  "compress-model": (result) => {
    const unit = result.target_unit ? ` ${result.target_unit}` : "";
    const [[name, { before, after, difference }]] = Object.entries(result.metrics);
    const bounds = difference.low === null ? "" : ` (changed by ${number(difference.low)} to ${number(difference.high)}, 95 %)`;
    return `${result.regressor}: PCR ${number(result.pcr)} · ${name} ${figure(before)} → ${figure(after)}${bounds} · `
      + `largest change of an answer ${number(result.agreement.largest_change)}${unit}`;
  },
};

const figure = ({ value }) => (value === null ? "not known" : number(value));

/** The answer of a result that has one, in a line: what a person wants to read first. */
function headline({ kind, result }) {
  if (HEADLINES[kind]) return HEADLINES[kind](result);
  const unit = result.target_unit ? ` ${result.target_unit}` : "";
  if (result.class_name) return `${result.target_name}: ${result.class_name}`;
  if (typeof result.value === "number") {
    const known = (result.intervals ?? []).filter((each) => each.low !== null && each.low !== undefined);
    const widest = known.at(-1);
    const between = widest ? ` (${number(widest.level * 100)} %: ${number(widest.low)} to ${number(widest.high)})` : "";
    return `${result.target_name}: ${number(result.value)}${unit}${between}`;
  }
  const [first] = Object.entries(result.metrics ?? {});
  if (!first) return null;
  const [name, { value, low, high }] = first;
  const bounds = low === null ? "" : ` (95 %: ${valueInWords("", low)} to ${valueInWords("", high)})`;
  return `${result.regressor}: ${name} ${figure({ value })}${bounds}`;
}

/** What is to be seen of a result without a click: its answer, what to be careful about, and its notice. */
function resultAtAGlance(job) {
  const { result } = job, answer = headline(job);
  const told = [...(result.warnings ?? []).filter(isTable).map(({ text }) => text), ...(result.notes ?? [])];
  const careful = told.map((text) => make("p", { className: "warning" }, `⚠ ${text}`));
  const notice = result.notice ? [make("p", { className: "notice" }, result.notice)] : [];
  const made = result.volume_id ? [soft("made ", scanLink(result.volume_id))] : [];
  if (job.kind === "compress-model") made.push(soft("made of ", jobLink(result.model)));
  return [...(answer ? [make("p", { className: "answer" }, answer)] : []), ...made, ...careful, ...notice];
}

function pictures(job) {
  const files = job.artifacts.filter((file) => file.media_type === "image/png");
  return files.map((file) => make("img", { className: "artifact", src: file.href, alt: file.name, loading: "lazy" }));
}

// ---- planes of a scan, shown as a radiologist expects them

const PLANE_OF = { S: "axial", I: "axial", A: "coronal", P: "coronal", L: "sagittal", R: "sagittal" };
const WANTED = { axial: ["L", "P"], coronal: ["L", "I"], sagittal: ["P", "I"] };
const OPPOSITE = { L: "R", R: "L", A: "P", P: "A", S: "I", I: "S" };

/** Name of the plane across an axis, which way to turn it, and the letters at its borders. */
function planeView(orientation, axis) {
  if (!orientation) return { name: axis, flips: [], marks: {} };
  const grows = { x: orientation[0], y: orientation[1], z: orientation[2] };
  const [row, column] = ["z", "y", "x"].filter((other) => other !== axis).map((other) => grows[other]);
  const name = PLANE_OF[grows[axis]];
  const [right, down] = WANTED[name];
  const flipX = column === OPPOSITE[right], flipY = row === OPPOSITE[down];
  const toRight = flipX ? OPPOSITE[column] : column, toBottom = flipY ? OPPOSITE[row] : row;
  return {
    name,
    flips: [flipX && "flip-x", flipY && "flip-y"].filter(Boolean),
    marks: { left: OPPOSITE[toRight], right: toRight, top: OPPOSITE[toBottom], bottom: toBottom },
  };
}

/** The coarsest level that still fills a card. */
function previewLevel(scan) {
  const enough = scan.level_shapes.findLastIndex((shape) => Math.max(...shape) >= 256);
  return Math.max(0, enough);
}

/** Where each scan was last looked at: a card that is drawn anew shows the same slice. */
const looking = new Map();

function browser(scan) {
  const level = previewLevel(scan), shape = scan.level_shapes[level];
  const axes = ["z", "y", "x"];
  const picture = make("div", { className: "picture" });
  const slider = make("input", { type: "range", min: 0, "aria-label": `slice of ${scan.name}` });
  const counter = make("span", { className: "number" });
  const planes = make("div", { className: "planes" });
  let { axis, index } = looking.get(scan.id) ?? { axis: "z", index: null };

  function showSlice() {
    looking.set(scan.id, { axis, index: slider.value });
    const view = planeView(scan.orientation, axis);
    const position = `${view.name} slice ${Number(slider.value) + 1} of ${Number(slider.max) + 1}`;
    const image = make("img", {
      alt: `${scan.name}, ${position}`, className: view.flips.join(" "), decoding: "async",
      src: `/v1/volumes/${scan.id}/slices/${axis}/${slider.value}?level=${level}&size=512`,
    });
    image.onerror = () => picture.replaceChildren("no picture of this slice");
    const marks = Object.entries(view.marks).map(([side, letter]) => make("span", { className: `mark ${side}` }, letter));
    picture.replaceChildren(image, ...marks);
    counter.textContent = `${Number(slider.value) + 1} / ${Number(slider.max) + 1}`;
  }

  function choose(chosen, at = null) {
    axis = chosen;
    const count = shape[axes.indexOf(axis)];
    slider.max = count - 1;
    slider.value = at ?? Math.floor(count / 2);
    for (const plane of planes.children) plane.setAttribute("aria-pressed", plane.dataset.axis === axis);
    showSlice();
  }

  for (const each of axes) {
    const plane = button(planeView(scan.orientation, each).name, () => choose(each));
    plane.dataset.axis = each;
    planes.append(plane);
  }
  slider.oninput = showSlice;
  choose(axis, index);
  return [picture, make("div", { className: "browse" }, slider, counter), planes];
}

// ---- scans

function scanFacts(scan) {
  const shape = scan.array_shape.map(whole).join(" × ");
  const spacing = scan.spacing ? `${scan.spacing.map(number).join(" × ")} mm` : "not known";
  const stored = scan.derived ? `for ${bytes(scan.source_bytes)} of voxels` : `(${scan.source_format})`;
  return facts([
    ["shape", `${shape} (${scan.axes.join(", ")})`],
    ["spacing", spacing],
    ["values", `${number(scan.statistics.minimum)} … ${number(scan.statistics.maximum)}, ${scan.dtype}`],
    ["stored", `${bytes(scan.stored_bytes)} ${stored}`],
  ]);
}

const nameOf = (id) => scans.rows.find((scan) => scan.id === id)?.name;
const madeOf = (scan) => scans.rows.filter((other) => other.derived?.volume_id === scan.id);

/** To a scan's card by its name; of one that is not on this page, what the API says of it. */
function scanLink(id) {
  const name = nameOf(id);
  return make("a", { href: name ? `#${id}` : `/v1/volumes/${id}` }, name ?? "a scan that is not shown here");
}

/** To a job's row; of one that is not on this page, what the API says of it. */
function jobLink(id) {
  const known = jobs.rows.some((job) => job.id === id);
  return make("a", { href: known ? `#${id}` : `/v1/jobs/${id}` }, known ? "a model on this page" : "a model that is not shown here");
}

/** Of what a volume was made, how, and what was made of it. */
function lineage(scan) {
  const made = madeOf(scan).flatMap((other, i) => [i ? " · " : "", scanLink(other.id)]);
  const lines = made.length ? [soft("made of it: ", ...made)] : [];
  if (!scan.derived) return lines;
  const asked = Object.fromEntries(Object.entries(scan.derived.settings).filter(([, value]) => value !== null));
  const words = resultInWords(asked).map((pair) => pair.join(" ")).join(", ");
  return [soft(`by ${scan.derived.kind} of `, scanLink(scan.derived.volume_id), words ? `: ${words}` : ""), ...lines];
}

function scanCard(scan) {
  const body = make("div", { className: "body" });
  const card = make("li", { className: "card", id: scan.id }, body);
  body.append(make("div", { className: "title" }, make("h3", {}, scan.name), chip(scan.state)));
  if (scan.state === "ready") {
    const [picture, browse, planes] = browser(scan);
    card.prepend(picture);
    const runs = kinds.filter((kind) => kind.needs_volume && !needsMore(kind) && suits(kind, scan)).map((kind) => {
      const run = button(kind.title, () => submit(kind, scan, run));
      run.title = kind.description;
      return run;
    });
    body.append(browse, planes, ...lineage(scan), scanFacts(scan), make("div", { className: "actions" }, ...runs));
    const compress = kinds.find((kind) => kind.name === "compress");
    if (compress) body.append(wish(compress, scan));
    if (kinds.some((kind) => kind.name === "predict")) body.append(question(scan));
    body.append(...scan.warnings.map((text) => make("p", { className: "warning" }, `⚠ ${text}`)));
  } else {
    const waiting = scan.state === "validating" ? "being read …" : "no picture";
    card.prepend(make("div", { className: "picture" }, waiting));
    if (scan.error) body.append(trouble(scan.error));
  }
  body.append(soft(scan.derived ? `made ${clock(scan.created_at)}` : `sent ${clock(scan.created_at)}, ${bytes(scan.source_bytes)}`));
  return card;
}

/** Whether a kind wants parameters that have no defaults: a button alone cannot give them. */
const needsMore = (kind) => (kind.parameters_schema.required ?? []).length > 0;

/** Whether a button has anything to do: gaps to fill, something to unpack; compressing has a form of its own. */
function suits(kind, scan) {
  if (kind.name === "complete") return scan.statistics.replaced > 0;
  if (kind.name === "decompress") return scan.derived?.kind === "compress";
  return kind.name !== "compress";
}

const GOALS = { ratio: ["ratio", 20], psnr: ["PSNR, dB", 45], bound: ["largest error", 0] };

/** A form that compresses a scan: to a ratio, a quality or an error of any voxel, and by what. */
function wish(kind, scan) {
  const options = Object.entries(GOALS).map(([value, [text]]) => make("option", { value }, text));
  const goal = make("select", { "aria-label": `what ${scan.name} is compressed to` }, ...options);
  const amount = make("input", { type: "number", step: "any", min: 0, value: GOALS.ratio[1], "aria-label": "how much" });
  const known = kind.parameters_schema.properties?.compressor?.enum ?? ["putt"];
  const compressor = make("select", { "aria-label": "compressor" }, ...known.map((name) => make("option", { value: name }, name)));
  const run = button(kind.title, () => submit(kind, scan, run, { [goal.value]: amount.valueAsNumber, compressor: compressor.value }));
  goal.onchange = () => { amount.value = GOALS[goal.value][1]; };
  compressor.value = "putt";
  run.title = kind.description;
  return make("details", {}, make("summary", {}, "compress"), make("div", { className: "actions" }, goal, amount, compressor, run));
}

/** The latest jobs of a kind that have a result. */
async function succeeded(kind) {
  const answer = await fetch(`/v1/jobs?kind=${kind}&state=succeeded`);
  return answer.ok ? (await answer.json()).jobs : [];
}

function modelName({ result, ended_at }) {
  const smaller = result.pcr ? ` (PCR ${number(result.pcr)})` : "";
  return `${result.target_name} by ${result.regressor}${smaller}, ${clock(ended_at)}`;
}

/** A form that asks a model about a scan: which one, and the numbers that it wants beside. */
function question(scan) {
  const choice = make("select", { "aria-label": `model to ask about ${scan.name}` });
  const numbers = make("div", { className: "actions" });
  const run = button("Predict", () => {
    const covariates = Object.fromEntries([...numbers.querySelectorAll("input")].map((input) => [input.name, input.valueAsNumber]));
    submit({ name: "predict" }, scan, run, { model: choice.value, covariates });
  });
  const form = make("details", {}, make("summary", {}, "ask a model"));
  let models = [];

  function choose() {
    const chosen = models.find((model) => model.id === choice.value);
    const inputs = (chosen?.result.covariates ?? []).map((name) =>
      make("label", { className: "soft" }, `${name} `, make("input", { type: "number", step: "any", name })));
    numbers.replaceChildren(...inputs, run);
  }

  async function open() {
    if (!form.open) return;
    models = (await Promise.all(["train", "compress-model"].map(succeeded))).flat();
    models.sort((one, other) => (one.ended_at < other.ended_at ? 1 : -1));
    choice.replaceChildren(...models.map((model) => make("option", { value: model.id }, modelName(model))));
    form.replaceChildren(form.firstChild, ...(models.length ? [choice, numbers] : [soft("No model yet: tomotrain train cohort.csv makes one.")]));
    choose();
  }

  choice.onchange = choose;
  form.ontoggle = open;
  return form;
}

async function submit(kind, scan, run, parameters = {}) {
  run.disabled = true;
  try {
    const answer = await fetch("/v1/jobs", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ kind: kind.name, volume_id: scan.id, parameters }),
    });
    if (!answer.ok) complain(await answer.json());
    await jobs.refresh();
    redraw();
  } catch {
    complain({ title: "The service does not answer", detail: "the job was not submitted; try again" });
  } finally {
    run.disabled = false;
  }
}

// ---- jobs

function jobProgress(job) {
  const { progress } = job;
  if (ENDED.has(job.state)) return [];
  const bar = make("progress", { "aria-label": `progress of ${job.kind}` });
  if (!progress) return job.state === "running" ? [bar] : [];
  if (progress.total) { bar.max = progress.total; bar.value = progress.done; }
  const total = progress.total === null ? "" : ` of ${whole(progress.total)}`;
  return [bar, soft(`${progress.phase}: ${whole(progress.done)}${total} ${progress.unit}`)];
}

function placeInWords({ ahead, eta_seconds: eta }) {
  const before = ahead ? `${whole(ahead)} ahead, ` : "the next, ";
  return before + (eta === null ? "" : `begins in about ${duration(eta)}, `);
}

function jobTimes(job) {
  if (!job.started_at) return `${job.queue_position ? placeInWords(job.queue_position) : ""}since ${clock(job.created_at)}`;
  const again = job.attempt > 1 ? `, attempt ${job.attempt} of ${job.max_attempts}` : "";
  const took = job.ended_at ? `took ${duration(between(job.started_at, job.ended_at))}` : `began ${clock(job.started_at)}`;
  return took + again;
}

function jobRow(job) {
  const row = make("li", { className: "row", id: job.id });
  const about = job.volume_id ? [" · ", scanLink(job.volume_id)] : [];
  row.append(make("div", { className: "title" }, make("h3", {}, job.kind, ...about), chip(job.state)));
  row.append(...jobProgress(job));
  if (job.error) row.append(trouble(job.error));
  if (job.result) {
    row.append(...resultAtAGlance(job), ...pictures(job));
    row.append(make("details", {}, make("summary", {}, "result"), facts(resultInWords(job.result))));
  }
  if (job.artifacts.length) {
    const links = job.artifacts.flatMap((file) => [make("a", { href: file.href, download: file.name }, file.name), ` (${bytes(file.size)}) `]);
    row.append(soft(...links));
  }
  const actions = make("div", { className: "title" }, soft(jobTimes(job)));
  if (!ENDED.has(job.state) && job.state !== "cancelling") actions.append(button("Cancel", () => cancel(job)));
  row.append(actions);
  return row;
}

async function cancel(job) {
  await fetch(`/v1/jobs/${job.id}/cancel`, { method: "POST" });
  await jobs.refresh();
  redraw();
}

// ---- lists that follow the API

class Following {
  /** `draw` makes a row's element; what it depends on beside the row, `beside` names. */
  constructor(path, key, list, empty, count, draw, beside) {
    Object.assign(this, { path, key, list, empty, count, draw, beside, etag: "", rows: [], drawn: new Map(), size: PAGE_SIZE });
  }

  /** Ask once; true when something is still going on. Throws when the service does not answer. */
  async refresh() {
    const headers = this.etag ? { "If-None-Match": this.etag } : {};
    const answer = await fetch(`${this.path}?page_size=${this.size}`, { headers, cache: "no-store" });
    if (answer.status === 304) return;
    if (answer.status === 401) return signedIn();
    const page = await answer.json();
    if (!answer.ok) throw new Error(page.detail);
    this.etag = answer.headers.get("ETag");
    this.rows = page[this.key];
    this.more = page.next_page_token !== null;
  }

  /** Put every row in its place; only those that changed are drawn anew, and what was open stays open. */
  redraw() {
    const before = this.drawn;
    this.drawn = new Map();
    for (const row of this.rows) {
      const text = JSON.stringify([row, kinds.length, this.beside(row)]);
      const old = before.get(row.id);
      const element = old?.text === text ? old.element : this.draw(row);
      if (old && old.element !== element) {
        const opened = [...old.element.querySelectorAll("details")].map((part) => part.open);
        element.querySelectorAll("details").forEach((part, i) => { part.open = opened[i] ?? false; });
      }
      this.drawn.set(row.id, { text, element });
    }
    const elements = [...this.drawn.values()].map((each) => each.element);
    const same = elements.length === this.list.children.length && elements.every((each, i) => each === this.list.children[i]);
    if (!same) this.list.replaceChildren(...elements);
    this.list.setAttribute("aria-busy", "false");
    this.empty.hidden = this.rows.length > 0;
    this.count.textContent = this.rows.length ? `${this.rows.length}${this.more ? "+" : ""}` : "";
  }
}

let kinds = [];
const scans = new Following("/v1/volumes", "volumes", $("scans"), $("no-scans"), $("scan-count"), scanCard,
  (scan) => [nameOf(scan.derived?.volume_id), madeOf(scan).map((other) => other.id)]);
const jobs = new Following("/v1/jobs", "jobs", $("jobs"), $("no-jobs"), $("job-count"), jobRow,
  (job) => [nameOf(job.volume_id), nameOf(job.result?.volume_id)]);

function redraw() {
  scans.redraw();
  jobs.redraw();
}

function busy() {
  return jobs.rows.some((job) => !ENDED.has(job.state)) || scans.rows.some((scan) => scan.state === "validating");
}

function complain(problem) {
  $("trouble").replaceChildren(make("strong", {}, `${problem.title}. `), problem.detail);
  $("trouble").hidden = false;
}

async function loadKinds() {
  const answer = await fetch("/v1/kinds");
  const known = answer.ok ? (await answer.json()).kinds : [];
  if (known.length !== kinds.length) kinds = known;
}

let down = false, nextHealth = 0;

async function round() {
  try {
    if (Date.now() >= nextHealth) await health();
    await jobs.refresh();
    await scans.refresh();
    redraw();
    $("more-scans").hidden = !scans.more || scans.size >= 200;
    if (down) $("trouble").hidden = true;
    down = false;
  } catch {
    down = true;
    nextHealth = 0;
    say("no answer", "bad", "");
    complain({ title: "The service does not answer", detail: "What is shown may be old; asking again every few seconds." });
  }
}

async function health() {
  const answer = await fetch("/readyz");
  const report = await answer.json();
  if (answer.ok) say("ready", "good", "catalogue, broker and worker answer"); else say(report.detail, "bad", report.detail);
  await loadKinds();
  nextHealth = Date.now() + (answer.ok ? HEALTH_MS : BUSY_MS);
}

function say(text, tone, title) {
  $("health").textContent = text;
  $("health").className = `chip ${tone}`;
  $("health").title = title;
}

let timer = 0;

async function follow() {
  clearTimeout(timer);
  if (document.hidden) return;
  await round();
  clearTimeout(timer);
  timer = setTimeout(follow, busy() ? BUSY_MS : IDLE_MS);
}

// ---- sending scans

function send(file) {
  const bar = make("progress", { max: file.size, value: 0, "aria-label": `upload of ${file.name}` });
  const words = soft("sending …");
  const request = new XMLHttpRequest();
  const stop = button("Cancel", () => request.abort());
  const card = make("li", { className: "card" }, make("div", { className: "body" }, make("h3", {}, file.name), bar, words, stop));
  const fail = (problem) => {
    bar.remove();
    words.replaceWith(trouble(problem));
    stop.textContent = "Dismiss";
    stop.onclick = () => card.remove();
  };
  request.upload.onprogress = (event) => {
    bar.value = event.loaded;
    words.textContent = `${bytes(event.loaded)} of ${bytes(file.size)}`;
  };
  request.onload = () => {
    if (request.status !== 202) { fail(JSON.parse(request.responseText)); return; }
    card.remove();
    follow();
  };
  request.onerror = () => fail({ title: "The upload broke off", detail: "the connection was lost; send the scan again" });
  request.onabort = () => card.remove();
  request.open("POST", "/v1/volumes");
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.setRequestHeader("Content-Disposition", `attachment; filename*=UTF-8''${encodeURIComponent(file.name)}`);
  request.send(file);
  $("uploads").prepend(card);
}

$("file").onchange = (event) => {
  [...event.target.files].forEach(send);
  event.target.value = "";
};
$("more-scans").onclick = () => { scans.size = Math.min(200, scans.size * 2); scans.etag = ""; follow(); };
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  [...event.dataTransfer.files].forEach(send);
});
document.addEventListener("visibilitychange", follow);
await signedIn().catch(() => {});
follow();
