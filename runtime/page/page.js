// The page: fields from what edge-sampler-page.json tells of the bundle, and pictures from what worker.js makes.

"use strict";

const SEEDS = 1n << 63n;
const FRAME = 140; // milliseconds that a picture of one evaluation is shown
const SMALL = 128; // pixels; pictures below are drawn with sharp ones
const QUICK = 30e6; // bytes; a graph of no more is run without being asked for
// A module of one function: i32.const 0, i8x16.splat, i8x16.popcnt (the WebAssembly specification's binary format)
const SIMD = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
];
const IN_TURN = "turn";
const at = (id) => document.getElementById(id);
const words = (name) => name.replaceAll("_", " ");
const still = matchMedia("(prefers-reduced-motion: reduce)");

let facts;
let worker; // {provider, ask}
let run = 0; // the newest; an older one stops
let tiles = []; // {canvas, pictures}

function say(line, bad = false) {
  if (at("status").textContent !== line) at("status").textContent = line; // screen readers say what is new
  at("status").classList.toggle("bad", bad);
  if (bad) at("progress").hidden = true;
}

function show(have, total) {
  at("progress").hidden = false;
  if (total) [at("progress").max, at("progress").value] = [total, have];
  else at("progress").removeAttribute("value");
}

async function begin() {
  if (location.protocol === "file:") {
    throw new Error("Browsers do not run this from a file: serve its folder, with python -m http.server -d FOLDER");
  }
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    throw new Error("This browser has no WebAssembly with SIMD, which this page needs: take a newer one");
  }
  const response = await fetch("edge-sampler-page.json").catch(() => ({ status: "nothing" }));
  if (!response.ok) throw new Error(`Cannot fetch edge-sampler-page.json: the server says ${response.status}`);
  facts = await response.json();
  const [channels, height, width] = facts.image;
  document.title = at("name").textContent = facts.name;
  at("summary").textContent =
    `${facts.nfe} network evaluations make a picture of ${width} × ${height} pixels, in this browser. ` +
    "Nothing that you enter leaves it.";
  at("warning").hidden = !facts.random_weights;
  at("count").value = width * height > SMALL * SMALL ? 1 : 16;
  at("gallery").style.setProperty("--tile", width > SMALL ? `${width}px` : "min(9rem, 28%)");
  at("conditions").append(...facts.conditions.map(field));
  at("stage").max = at("stage").value = facts.stages.length;
  for (const [term, told] of [
    ["Sampler", `${facts.solver}, ${facts.nfe} evaluations; ${channels === 1 ? "grey" : "colour"}`],
    ["Graph", `sampler.onnx, SHA-256 ${facts.files["sampler.onnx"].sha256}`],
    ["Files", isSecureContext ? "held against their SHA-256" : "not held against their SHA-256, which needs https"],
    ["Runs by", Object.entries(facts.versions).map(([name, version]) => `${name} ${version}`).join(", ")],
    ["Weights", `licence: ${facts.licence}`],
  ]) {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    [dt.textContent, dd.textContent] = [term, told];
    at("facts").append(dt, dd);
  }
  at("runs-on").hidden = !(await navigator.gpu?.requestAdapter().catch(() => null));
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    make().catch((error) => say(error.message, true));
  });
  at("new-noise").addEventListener("click", () => {
    at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    at("form").requestSubmit();
  });
  at("stage").addEventListener("input", () => tiles.forEach((tile) => draw(tile)));
  at("play").addEventListener("click", () => {
    at("stage").value = at("stage").max;
    tiles.forEach((tile) => play(tile));
  });
  say("Ready.");
  const bytes = ["sampler.onnx", ...facts.data].reduce((sum, name) => sum + facts.files[name].bytes, 0);
  if (bytes < QUICK && at("form").checkValidity()) at("form").requestSubmit();
}

// ---- Conditions

function field(known) {
  const [box, label, about] = ["div", "label", "small"].map((tag) => document.createElement(tag));
  const input = document.createElement(known.kind === "choice" ? "select" : "input");
  box.className = "field";
  input.id = label.htmlFor = `condition-${known.name}`;
  about.id = `${input.id}-about`;
  input.setAttribute("aria-describedby", about.id);
  label.textContent = words(known.name);
  about.textContent = known.about;
  if (known.kind === "choice") {
    input.add(new Option("each in turn", IN_TURN));
    for (let choice = 0; choice < known.choices; ++choice) input.add(new Option(choice, choice));
    if (known.null !== null) input.add(new Option("none", known.null));
  } else if (known.kind === "numbers") {
    [input.value, input.required] = [known.default.join(", "), true];
  } else {
    input.value = known.default ?? "";
    input.required = known.default === null && !known.follows;
    if (known.follows) input.placeholder = `as ${known.follows}`;
  }
  box.append(label, input, about);
  return box;
}

// A condition's value for the image of that index, and how the command line says it.
function valueOf(known, index) {
  const text = at(`condition-${known.name}`).value;
  if (known.kind === "text") {
    const followed = facts.conditions.find((other) => other.name === known.follows);
    return text === "" && followed ? valueOf(followed, index) : text;
  }
  const parts = known.kind === "choice" ? [text === IN_TURN ? String(index % known.choices) : text] : text.split(",");
  const count = known.shape.reduce((a, b) => a * b, 1);
  if (parts.length !== count) throw new Error(`${known.name} takes ${count} numbers, and there are ${parts.length}`);
  return parts.map((part) => number(known, part.trim()));
}

function number(known, text) {
  const whole = /^-?\d+$/.test(text);
  const value = known.dtype === "int64" && whole ? BigInt(text) : Number(text);
  const [low, high] = known.choices ? [0, known.choices - 1] : [-Infinity, Infinity];
  const held = whole && known.dtype === "int64" ? BigInt.asIntN(64, value) === value : Number.isFinite(Math.fround(value));
  const fits = text !== "" && held && (whole || known.dtype === "float32");
  if (!fits || ((value < low || value > high) && Number(text) !== known.null)) {
    const range = known.choices ? `, ${low} to ${high}` : "";
    throw new Error(`${known.name} is told ${text || "nothing"}; it takes ${known.dtype}${range}`);
  }
  return value;
}

// ---- Images

async function make() {
  const mine = ++run;
  const first = BigInt(at("seed").value);
  const count = Number(at("count").value);
  const provider = at("provider").value;
  if (first + BigInt(count) > SEEDS) throw new Error(`Seeds are 0 to ${SEEDS - 1n}`);
  const wanted = Array.from({ length: count }, (_, index) => ({
    seed: first + BigInt(index),
    conditions: Object.fromEntries(facts.conditions.map((known) => [known.name, valueOf(known, index)])),
  }));
  if (worker?.provider !== provider) worker?.end();
  worker ??= start(provider);
  const { ask, opened } = worker;
  await opened;
  if (mine !== run) return;
  tiles = [];
  at("gallery").replaceChildren();
  at("stage").value = at("stage").max;
  at("evaluations").hidden = facts.stages.length === 0;
  at("same").hidden = false;
  at("command").textContent = command(wanted);
  say(`Making ${count} image${count > 1 ? "s" : ""} …`);
  let seconds = 0;
  for (const [index, one] of wanted.entries()) {
    show(index, count);
    const { stages, made, seconds: taken } = await ask("make", one);
    if (mine !== run) return;
    seconds += taken;
    add(one, [...stages, made].map(picture));
  }
  at("progress").hidden = true;
  const each = (seconds / count).toPrecision(2);
  say(
    `${count} image${count > 1 ? "s" : ""} in ${seconds.toPrecision(3)} s: ${each} s each, ` +
      `of ${facts.nfe} evaluations; ${provider === "wasm" ? "WebAssembly, one thread" : "WebGPU"}.`,
  );
}

// A worker that has the graph in that runtime, once `opened` is done. `ask` sends it one thing to do.
function start(provider) {
  const thread = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  const ask = (verb, told) =>
    new Promise((resolve, reject) => {
      const id = waiting.size;
      waiting.set(id, { resolve, reject });
      thread.postMessage({ id, verb, ...told });
    });
  thread.onmessage = ({ data: { id, progress, error, answer } }) => {
    if (progress) {
      const { what, have, total } = progress;
      say(`${what}${total ? `, ${(total / 1e6).toFixed(1)} MB` : ""} …`);
      show(have, total);
    } else if (error) waiting.get(id).reject(new Error(error));
    else waiting.get(id).resolve(answer);
  };
  thread.onerror = () => {
    waiting.forEach(({ reject }) => reject(new Error("Cannot start worker.js: copy the page again")));
  };
  const opened = ask("open", { facts, provider });
  const end = () => {
    thread.terminate();
    worker = undefined;
  };
  opened.catch(end); // the next try begins anew
  return { provider, ask, opened, end };
}

// Floats [C, H, W] in [-1, 1], or uint8 [H, W, C] → pixels, rounded and clipped as runtime/images.py does.
function picture(values) {
  const [channels, height, width] = facts.image;
  const area = height * width;
  const image = new ImageData(width, height);
  const level = (pixel, channel) =>
    values instanceof Uint8Array
      ? values[pixel * channels + channel]
      : Math.fround(Math.fround(values[channel * area + pixel] * 127.5) + 127.5);
  for (let pixel = 0; pixel < area; ++pixel) {
    for (let colour = 0; colour < 3; ++colour) image.data[4 * pixel + colour] = level(pixel, colour % channels);
    image.data[4 * pixel + 3] = 255;
  }
  return image;
}

function add({ seed, conditions }, pictures) {
  const [figure, canvas, caption] = ["figure", "canvas", "figcaption"].map((tag) => document.createElement(tag));
  const choices = facts.conditions.filter(({ kind }) => kind === "choice");
  const title = [`seed ${seed}`, ...choices.map(({ name }) => `${words(name)} ${conditions[name]}`)].join(", ");
  [canvas.width, canvas.height] = [pictures[0].width, pictures[0].height];
  canvas.classList.toggle("small", canvas.width < SMALL);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Image of ${title}`);
  caption.textContent = title;
  figure.append(canvas, caption);
  at("gallery").append(figure);
  const tile = { canvas, pictures };
  tiles.push(tile);
  play(tile);
}

function draw({ canvas, pictures }, stage = Number(at("stage").value)) {
  canvas.getContext("2d").putImageData(pictures[stage], 0, 0);
  const last = Number(at("stage").max);
  at("stage-name").textContent = stage < last ? `${stage + 1} of ${last}` : "the image";
}

// Shows a picture's evaluations one after the other, up to where the slider stands.
function play(tile, stage = still.matches ? Infinity : 0) {
  if (!tile.canvas.isConnected) return;
  if (stage >= Number(at("stage").value)) return draw(tile);
  draw(tile, stage);
  setTimeout(() => play(tile, stage + 1), FRAME);
}

function command(wanted) {
  const seeds = `${wanted[0].seed}${wanted.length > 1 ? `-${wanted.at(-1).seed}` : ""}`;
  const told = facts.conditions.map(({ name, kind, dtype }) => {
    const values = wanted.map(({ conditions }) => conditions[name]);
    const one = kind === "choice" && new Set(values.map(String)).size > 1 ? values : values[0];
    const said = dtype === "bool" ? one.flat().map((value) => (value ? "true" : "false")) : one;
    return ` --condition ${name}=${kind === "text" ? `'${one.replaceAll("'", "'\\''")}'` : said}`;
  });
  return `python -m runtime sample ${facts.bundle} --seeds ${seeds}${told.join("")} --out images.png`;
}

begin().catch((error) => say(error.message, true));
