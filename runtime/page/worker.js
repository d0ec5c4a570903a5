// Fetches and checks the files, and runs sampler.onnx: off the page's thread, one sample at a time.
//
// In:  {id, verb: "open", facts, provider}, then any number of {id, verb: "make", seed, conditions}
// Out: {id, progress}, {id, error} or {id, answer}

import { unitNoise } from "./noise.js";

const RUNTIMES = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded"],
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify"],
};
const ARRAYS = { float32: Float32Array, int64: BigInt64Array, bool: Uint8Array };
const verbs = { open, make };
let facts, ort, session;
let tokenizers = {}; // by file

onmessage = async ({ data: { id, verb, ...told } }) => {
  try {
    const answer = await verbs[verb](told, (progress) => postMessage({ id, progress }));
    postMessage({ id, answer });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error).split("\n")[0] });
  }
};

async function open(told, tell) {
  facts = told.facts;
  const [library, file] = RUNTIMES[told.provider];
  const wasm = await verified(`onnxruntime-web/${file}.wasm`, tell);
  const graph = await verified("sampler.onnx", tell);
  const data = [];
  for (const name of facts.data) data.push({ path: name, data: await verified(name, tell) });
  tokenizers = await openTokenizers(tell);
  tell({ what: "Preparing the network" });
  ort = await import(`./onnxruntime-web/${library}`);
  ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.wasmPaths = { mjs: new URL(`onnxruntime-web/${file}.mjs`, location.href).href };
  ort.env.logLevel = "error";
  // Protocol Buffers merge what is repeated: these bytes declare the answers of all evaluations as outputs
  const declared = Uint8Array.from(atob(facts.declare), (letter) => letter.charCodeAt(0));
  const whole = new Uint8Array(graph.length + declared.length);
  whole.set(graph);
  whole.set(declared, graph.length);
  session = await ort.InferenceSession.create(whole, { executionProviders: [told.provider], externalData: data });
}

// A file's content. It is not checked where the browser has no hashes for it, which is on http: from another machine.
async function verified(name, tell) {
  const packed = name.endsWith(".wasm");
  const response = await fetch(packed ? `${name}.gz` : name).catch((error) => {
    throw new Error(`cannot fetch ${name}: ${error.message}`);
  });
  if (!response.ok) throw new Error(`cannot fetch ${name}: the server says ${response.status}`);
  const total = Number(response.headers.get("Content-Length"));
  const pieces = [];
  let have = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read().catch((error) => {
      throw new Error(`cannot fetch ${name}: ${error.message}`);
    });
    if (done) break;
    pieces.push(value);
    tell({ what: `Fetching ${name}`, have: (have += value.length), total });
  }
  let content = new Uint8Array(await new Blob(pieces).arrayBuffer());
  if (packed && content[0] === 0x1f && content[1] === 0x8b) { // some servers have it unpacked on the way
    const unpacked = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
    content = new Uint8Array(await new Response(unpacked).arrayBuffer());
  }
  if (crypto.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== facts.files[name].sha256) {
      throw new Error(`${name} is not the file that this page was made with (its SHA-256 differs): copy it again`);
    }
  }
  return content;
}

async function openTokenizers(tell) {
  const found = {};
  for (const known of facts.conditions.filter((condition) => condition.kind === "text")) {
    const { Tokenizer } = await import("./tokenizers/tokenizers.min.mjs");
    found[known.file] ??= new Tokenizer(JSON.parse(new TextDecoder().decode(await verified(known.file, tell))), {});
    for (const [text, ids] of known.probes) {
      if (tokens(known, text, found[known.file]).join() !== ids.join()) {
        throw new Error(`this page cannot read texts as ${known.name} wants them: its tokenizer is of an unknown kind`);
      }
    }
  }
  return found;
}

// Token ids, as many as the graph takes.
function tokens(known, text, tokenizer) {
  const { ids } = tokenizer.encode(text);
  const [length] = known.shape;
  if (ids.length > length) {
    throw new Error(`${known.name} has ${ids.length} tokens, and the model takes ${length}: shorten it`);
  }
  const padding = Array(length - ids.length).fill(known.pad);
  return known.pad_left ? [...padding, ...ids] : [...ids, ...padding];
}

// One sample: the graph's answer at each evaluation, what it makes, and the seconds that it took.
async function make({ seed, conditions }) {
  const count = facts.noise.reduce((a, b) => a * b);
  const noise = unitNoise(seed, count).map((value) => value * Math.fround(facts.temperature));
  const feed = { noise: new ort.Tensor("float32", noise, [1, ...facts.noise]) };
  for (const known of facts.conditions) {
    const given = conditions[known.name];
    const values = known.kind === "text" ? tokens(known, given, tokenizers[known.file]).map(BigInt) : given;
    feed[known.name] = new ort.Tensor(known.dtype, ARRAYS[known.dtype].from(values), [1, ...known.shape]);
  }
  const start = performance.now();
  const found = await session.run(feed);
  const seconds = (performance.now() - start) / 1000;
  const arrays = await Promise.all([...facts.stages, facts.output].map((name) => found[name].getData()));
  if (!arrays.every((array) => array.every(Number.isFinite))) throw new Error("the images hold NaN or infinity");
  return { stages: arrays.slice(0, -1), made: arrays.at(-1), seconds };
}
