// Unit noise by seed, as runtime/noise.py makes it with NumPy; runtime/cpp/edge_sampler.hpp says the same.

const LOW_64 = (1n << 64n) - 1n;
const R = 3.654152885361009; // where the ziggurat's tail begins
const TAIL = 0.00032339576466332126; // the area under exp(-x²/2) beyond R: sqrt(π/2)·erfc(R/√2)
const WHOLE = 8388608; // distances are whole numbers of 23 bits
export const SEEDS = 1n << 63n; // seeds are 0 … SEEDS - 1

// Yields 32-bit numbers of Philox4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) as NumPy
// counts: one before the first block, and the low half of a word before its high half.
function* philox(seed) {
  for (let counter = 1n; ; ++counter) {
    let [a, b, c, d] = [counter, 0n, 0n, 0n];
    let [first, second] = [seed, 0n];
    for (let round = 0; round < 10; ++round) {
      const p = 0xd2e7470ee14c6c93n * a;
      const q = 0xca5a826395121157n * c;
      [a, b, c, d] = [(q >> 64n) ^ b ^ first, q & LOW_64, (p >> 64n) ^ d ^ second, p & LOW_64];
      first = (first + 0x9e3779b97f4a7c15n) & LOW_64;
      second = (second + 0xbb67ae8584caa73bn) & LOW_64;
    }
    for (const word of [a, b, c, d]) {
      yield Number(word & 0xffffffffn);
      yield Number(word >> 32n);
    }
  }
}

// The layers of Marsaglia & Tsang, "The Ziggurat Method for Generating Random Variables" (2000): 256 of one area under
// exp(-x²/2). `k` is rounded, as in NumPy; the paper cuts it off.
export function ziggurat() {
  const height = (x) => Math.exp(-0.5 * x * x);
  const area = R * height(R) + TAIL;
  const base = area / height(R);
  const k = new Uint32Array(256);
  const w = new Float32Array(256);
  const f = new Float32Array(256);
  [k[0], w[0], f[0]] = [Math.round((R / base) * WHOLE), base / WHOLE, 1];
  [w[255], f[255]] = [R / WHOLE, height(R)];
  for (let layer = 254, outer = R; layer >= 1; --layer) {
    const x = Math.sqrt(-2 * Math.log(area / outer + height(outer)));
    k[layer + 1] = Math.round((x / outer) * WHOLE);
    [w[layer], f[layer]] = [x / WHOLE, height(x)];
    outer = x;
  }
  return { k, w, f };
}

const { k, w, f } = ziggurat();

// One value as NumPy's standard_normal(dtype=float32) draws it. Sums and products are of float32, each rounded. One in
// four thousand is of the tail, where NumPy asks the C library for log1pf. Here that is rounded correctly; a C library
// may be off in the last bit (glibc 2.36 is in 7 of 100), which shows in the last bit of one value in 800,000.
function standardNormal(bits) {
  const round = Math.fround;
  const unit = () => (bits.next().value >>> 8) / 16777216; // [0, 1), exact
  const log1p = (x) => round(Math.log1p(x));
  for (;;) {
    const drawn = bits.next().value;
    const layer = drawn & 0xff;
    const magnitude = drawn >>> 9;
    const distance = round(magnitude * w[layer]);
    const x = (drawn >>> 8) & 1 ? -distance : distance;
    if (magnitude < k[layer]) return x;
    if (layer === 0) {
      for (;;) {
        const beyond = round(-round(1 / R) * log1p(-unit()));
        const y = -log1p(-unit());
        const value = round(round(R) + beyond);
        if (round(y + y) > round(beyond * beyond)) return (magnitude >>> 8) & 1 ? -value : value;
      }
    }
    const step = round(f[layer - 1] - f[layer]);
    if (round(round(step * unit()) + f[layer]) < Math.exp(-0.5 * x * x)) return x;
  }
}

// `count` values of float32 for a seed, a BigInt from 0 to 2^63 - 1.
export function unitNoise(seed, count) {
  if (seed < 0n || seed >= SEEDS) throw new Error(`seed ${seed} is out of range; seeds are 0 to ${SEEDS - 1n}`);
  const bits = philox(seed);
  return Float32Array.from({ length: count }, () => standardNormal(bits));
}
