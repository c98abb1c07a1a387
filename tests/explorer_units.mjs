// Unit tests of explorer.js against figures that numpy made: `node explorer_units.mjs EXPLORER.mjs CASES.json` prints
// {name: "" or what failed}; a browser calls check(module, cases). Arrays come as base64 of little-endian float32.

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);

function same(got, expected, tolerance, what) {
  if (got.length !== expected.length) throw new Error(`${what}: ${got.length} numbers, not ${expected.length}`);
  for (let i = 0; i < got.length; i++)
    if (!Object.is(got[i], expected[i]) && !(Math.abs(got[i] - expected[i]) <= tolerance))
      throw new Error(`${what}: number ${i} is ${got[i]}, not ${expected[i]}`);
}

function refuses(words, call) {
  let message = "nothing was refused";
  try { call(); } catch (error) { message = error.message; }
  if (!message.includes(words)) throw new Error(`"${words}" was expected: ${message}`);
}

const TESTS = {
  halves({ fromHalf }, { halves }) {               // Object.is tells -0 from 0 and knows nan
    same(fromHalf(Uint16Array.from({ length: 65536 }, (_, bits) => bits)), floats(halves), -1, "half floats");
  },

  activations({ Decoder }, { activations }) {
    for (const { header, blob, z, images } of activations)
      same(new Decoder(header, bytes(blob)).decode(floats(z)), floats(images), 1e-6, header.layers[0].activation);
  },

  products({ Decoder }, { products }) {
    for (const { header, blob, z, images } of products)
      same(new Decoder(header, bytes(blob)).decode(floats(z)), floats(images), 1e-5, `${floats(z).length} numbers, ${JSON.stringify(header)}`);
  },

  views({ Decoder }, { products }) {               // a kernel's buffer may start anywhere in a message
    const { header, blob, z, images } = products.at(-1), plain = bytes(blob);
    for (const offset of [0, 1, 2, 7]) {
      const message = new Uint8Array(plain.length + offset + 5).fill(255);
      message.set(plain, offset);
      const view = new DataView(message.buffer, offset, plain.length);
      same(new Decoder(header, view).decode([...floats(z)]), floats(images), 1e-5, `from byte ${offset}`);
    }
  },

  lengths({ Decoder }, { products }) {
    const { header, blob } = products[0], plain = bytes(blob);
    for (const length of [0, 1, plain.length - 2, plain.length - 1, plain.length + 1, plain.length + 2]) {
      const other = new Uint8Array(length);
      refuses(`${length} bytes, not ${plain.length}`, () => new Decoder(header, other));
    }
  },

  names({ Decoder }, { products }) {
    const { header, blob } = products[0];
    const layers = header.layers.map((layer) => ({ ...layer, activation: "gelu" }));
    refuses("gelu", () => new Decoder({ ...header, layers }, bytes(blob)));
  },

  repeats({ Decoder }, { products }) {             // decoding writes to neither the code nor the weights
    const { header, blob, z, images } = products.at(-1), decoder = new Decoder(header, bytes(blob)), codes = floats(z);
    for (let k = 0; k < 3; k++) same(decoder.decode(codes), floats(images), 1e-5, `decoding for the ${k + 1}th time`);
    same(codes, floats(z), 0, "the code afterwards");
  },
};

export function check(module, cases) {
  return Object.fromEntries(Object.entries(TESTS).map(([name, test]) => {
    try { return [name, (test(module, cases), "")]; } catch (error) { return [name, String(error.message)]; }
  }));
}

if (typeof process === "object" && process.argv?.length === 4) {
  const [{ readFileSync }, { pathToFileURL }] = await Promise.all([import("node:fs"), import("node:url")]);
  const module = await import(pathToFileURL(process.argv[2]));
  console.log(JSON.stringify(check(module, JSON.parse(readFileSync(process.argv[3])))));
}
