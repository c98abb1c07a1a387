// A latent space to move in: the decoder of a dense VAE runs here, in the reader's browser, with or without a kernel.
// Jupyter and the built page call render({model, el}). `decoder` refers to a model of its own (header and float16
// weights), so that several explorers of one page share one; the fields are those of LatentExplorer in explorer.py.

export function fromHalf(bits) {                   // IEEE half precision, as a Uint16Array, to Float32Array
  const power = Float64Array.from({ length: 31 }, (_, e) => 2 ** (e - 25)), values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const h = bits[i], sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent === 31) values[i] = fraction ? NaN : sign * Infinity;
    else values[i] = sign * (exponent ? (1024 + fraction) * power[exponent] : fraction * 2 ** -24);
  }
  return values;
}

const ACTIVATIONS = {
  none: (y) => y,
  relu: (y) => { for (let i = 0; i < y.length; i++) if (y[i] < 0) y[i] = 0; return y; },
  tanh: (y) => { for (let i = 0; i < y.length; i++) y[i] = Math.tanh(y[i]); return y; },
  sigmoid: (y) => { for (let i = 0; i < y.length; i++) y[i] = 1 / (1 + Math.exp(-y[i])); return y; },
};

export class Decoder {                             // z (n × d) -> mean images (n × D), all Float32Array
  constructor({ layers, shape }, blob) {
    const expected = 2 * layers.reduce((sum, { inputs, outputs }) => sum + (inputs + 1) * outputs, 0);
    if (blob.byteLength !== expected) throw new Error(`the decoder has ${blob.byteLength} bytes, not ${expected}`);
    const flat = halves(blob);
    let at = 0;
    const take = (count) => flat.subarray(at, (at += count));
    this.shape = shape;
    this.layers = layers.map((layer) => {
      if (!ACTIVATIONS[layer.activation]) throw new Error(`the activation ${layer.activation} is unknown here`);
      return { ...layer, weight: take(layer.inputs * layer.outputs), bias: take(layer.outputs) };
    });
    this.latentDim = layers[0].inputs;
    this.pixels = layers.at(-1).outputs;
  }

  decode(z) {
    const n = z.length / this.latentDim;
    return this.layers.reduce((x, layer) => ACTIVATIONS[layer.activation](product(x, n, layer)), Float32Array.from(z));
  }
}

function product(x, n, { inputs, outputs, weight, bias }) {   // y = W x + b; four codes at a time share a row of weights
  const y = new Float32Array(n * outputs), together = n - (n % 4);
  for (let at = 0; at < together; at += 4) {
    const i0 = at * inputs, i1 = i0 + inputs, i2 = i1 + inputs, i3 = i2 + inputs;
    for (let o = 0, w = 0; o < outputs; o++) {
      let a = bias[o], b = a, c = a, d = a;
      for (let i = 0; i < inputs; i++) {
        const v = weight[w++];
        a += v * x[i0 + i]; b += v * x[i1 + i]; c += v * x[i2 + i]; d += v * x[i3 + i];
      }
      const to = at * outputs + o;
      y[to] = a; y[to + outputs] = b; y[to + 2 * outputs] = c; y[to + 3 * outputs] = d;
    }
  }
  for (let at = together; at < n; at++)            // four sums at a time, because one would wait for itself
    for (let o = 0, w = 0; o < outputs; o++) {
      let a = bias[o], b = 0, c = 0, d = 0, i = at * inputs;
      for (const end = i + inputs - 3; i < end; i += 4, w += 4) {
        a += weight[w] * x[i]; b += weight[w + 1] * x[i + 1]; c += weight[w + 2] * x[i + 2]; d += weight[w + 3] * x[i + 3];
      }
      for (; i < (at + 1) * inputs; i++, w++) a += weight[w] * x[i];
      y[at * outputs + o] = a + b + c + d;
    }
  return y;
}

export function paint(canvas, images, [channels, height, width], columns = 1) {   // ink is dark, colours are colours
  const count = images.length / (channels * height * width), rows = Math.ceil(count / columns);
  canvas.width = columns * width;
  canvas.height = rows * height;
  const context = canvas.getContext("2d"), area = height * width;
  for (let k = 0; k < count; k++) {
    const picture = context.createImageData(width, height);
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) {
        const value = images[k * channels * area + (channels === 3 ? c * area : 0) + i];
        picture.data[4 * i + c] = Math.round(255 * (channels === 3 ? value : 1 - value));
      }
      picture.data[4 * i + 3] = 255;
    }
    context.putImageData(picture, (k % columns) * width, Math.floor(k / columns) * height);
  }
}

const halves = (view) => fromHalf(new Uint16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)));
const uints = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

async function decoderOf(model) {                  // kept with the weights: each explorer runs a copy of this script
  const source = await model.widget_manager.get_model(model.get("decoder").replace("IPY_MODEL_", ""));
  return (source.latentDecoder ??= new Decoder(source.get("header"), source.get("blob")));
}

function normal() {                                // Box and Muller
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    name in element ? (element[name] = value) : element.setAttribute(name, value);
  element.append(...children);
  return element;
}

class Explorer {
  constructor(model, decoder, root) {
    Object.assign(this, { model, decoder, d: decoder.latentDim, extent: model.get("extent"), wanted: 0 });
    this.order = model.get("order").length ? model.get("order") : [...Array(this.d).keys()];
    this.codes = halves(model.get("codes"));       // of test images, N × d, with their labels
    this.labels = uints(model.get("labels"));
    this.picture = make("canvas", { className: "picture", role: "img" });
    this.words = make("output", { "aria-live": "polite" });
    this.strip = make("canvas", { className: "strip", role: "img" });
    this.left = make("div", {}, ...(this.d === 2 ? this.makePlane() : this.makeSliders()));
    this.right = make("div", {}, this.picture, this.words, this.makeButtons(), ...this.makeStarts(), this.makeStrip());
    root.append(make("div", { className: "latent-explorer" }, this.left, this.right));
    this.listen = () => { if (!this.underway) this.begin?.(); this.refresh(); };
    model.on("change:z", this.listen);
    this.draw();
  }

  get z() { return this.model.get("z"); }

  move(z, underway = false) {                      // the one way to change z: the model tells everybody else
    this.underway = underway;                      // to another image, or else the way there starts anew
    this.model.set("z", z.map((value) => Math.max(-this.extent, Math.min(this.extent, value))));
    this.underway = false;
    this.model.save_changes();
  }

  moveUnit(unit, value) { this.move(this.z.map((old, k) => (k === unit ? value : old))); }

  refresh() {                                      // at most one picture a frame, and always the newest
    if (!this.wanted) this.wanted = requestAnimationFrame(() => { this.wanted = 0; this.draw(); });
  }

  draw() {
    const z = this.z, near = this.nearest(z);
    paint(this.picture, this.decoder.decode(z), this.decoder.shape);
    const shown = (this.d === 2 ? [0, 1] : this.order.slice(0, 6)).map((k) => `z${k + 1} = ${z[k].toFixed(2)}`).join(", ");
    this.words.textContent = shown + (this.d > 6 ? ", …" : "") + (near === null ? "" : `; the nearest test image is of class ${near}`);
    this.picture.setAttribute("aria-label", `The decoder's mean image at ${this.words.textContent}`);
    this.sliders?.forEach((slider, k) => { slider.value = z[k]; slider.nextSibling.textContent = z[k].toFixed(2); });
    if (this.plane) this.drawPlane();
    this.drawStrip();
  }

  nearest(z) {                                     // the class of the nearest test code
    let best = Infinity, found = null;
    for (let n = 0; n < this.labels.length; n++) {
      let distance = 0;
      for (let k = 0; k < this.d; k++) distance += (this.codes[n * this.d + k] - z[k]) ** 2;
      if (distance < best) [best, found] = [distance, this.labels[n]];
    }
    return found;
  }

  // Two numbers: a plane to drag in
  makePlane() {
    this.plane = make("canvas", { className: "plane", tabIndex: 0, role: "application", width: 512, height: 512,
      "aria-label": "The plane of codes: drag, or use the arrow keys, with shift for finer steps" });
    const point = (event) => {
      const box = this.plane.getBoundingClientRect(), across = (at, size) => (2 * at / size - 1) * this.extent;
      this.move([across(event.clientX - box.left, box.width), -across(event.clientY - box.top, box.height)]);
    };
    this.plane.onpointerdown = (event) => { this.plane.setPointerCapture(event.pointerId); point(event); };
    this.plane.onpointermove = (event) => event.buttons && point(event);
    this.plane.onkeydown = (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!way) return;
      event.preventDefault();
      const step = this.extent * (event.shiftKey ? 0.005 : 0.05);
      this.move(this.z.map((value, k) => value + step * way[k]));
    };
    this.behind = make("select", {}, ...(this.labels.length ? ["test images' codes"] : []).concat("decoded images", "nothing")
      .map((name) => make("option", { textContent: name })));
    this.behind.onchange = () => this.drawPlane();
    const colours = [...new Set(this.labels)].sort((a, b) => a - b).map((label) =>
      make("span", {}, make("span", { className: "swatch", style: `color: ${this.colour(label)}` }, "■"), ` ${label}`));
    return [this.plane, make("label", { className: "tools" }, "behind the point: ", this.behind),
      make("div", { className: "tools" }, ...(colours.length ? ["class", ...colours] : []))];
  }

  colour(label) { return this.model.get("palette")[label % this.model.get("palette").length]; }

  drawPlane() {
    const context = this.plane.getContext("2d"), size = this.plane.width;
    const place = (a, b) => [(a / this.extent + 1) / 2 * size, (1 - b / this.extent) / 2 * size];
    context.fillStyle = "#fff";
    context.fillRect(0, 0, size, size);
    if (this.behind.value === "decoded images") context.drawImage(this.manifold(), 0, 0, size, size);
    if (this.behind.value.startsWith("test"))
      for (let n = 0; n < this.labels.length; n++) {
        context.fillStyle = this.colour(this.labels[n]);
        const [x, y] = place(this.codes[2 * n], this.codes[2 * n + 1]);
        context.fillRect(x - 2.5, y - 2.5, 5, 5);
      }
    const [x, y] = place(...this.z);
    for (const [width, colour] of [[7, "#fff"], [3, "#000"]]) {
      Object.assign(context, { lineWidth: width, strokeStyle: colour });
      context.beginPath();
      context.arc(x, y, 12, 0, 7);
      context.stroke();
    }
  }

  manifold(n = 15) {                               // a grid of decoded images, made once
    if (!this.grid) {
      const tick = (k) => (2 * (k + 0.5) / n - 1) * this.extent, codes = [];
      for (let row = 0; row < n; row++) for (let column = 0; column < n; column++) codes.push(tick(column), -tick(row));
      this.grid = make("canvas");
      paint(this.grid, this.decoder.decode(codes), this.decoder.shape, n);
    }
    return this.grid;
  }

  // More numbers: a slider each, those that carry nothing folded away
  makeSliders() {
    const kl = this.model.get("kl");
    this.sliders = [];
    const rows = this.order.map((unit) => {
      const about = kl.length ? ` (KL ${kl[unit].toFixed(2)})` : "";
      const slider = make("input", { type: "range", min: -this.extent, max: this.extent, step: 0.01, "aria-label": `z${unit + 1}${about}`,
        "data-lm-suppress-shortcuts": "true" });                // or JupyterLab takes the arrow keys
      slider.oninput = () => this.moveUnit(unit, Number(slider.value));
      this.sliders[unit] = slider;
      return make("label", { className: "unit" }, `z${unit + 1}${about}`, slider, make("span"));
    });
    const active = this.order.filter((unit) => !kl.length || kl[unit] > 0.01).length;
    const parts = [make("div", { className: "units" }, ...rows.slice(0, active))];
    if (active < rows.length)
      parts.push(make("details", {}, make("summary", { textContent: `units that carry nothing: ${rows.length - active}` }), ...rows.slice(active)));
    return parts;
  }

  makeButtons() {
    const button = (textContent, onclick) => make("button", { type: "button", textContent, onclick });
    return make("div", { className: "tools" }, button("Reset", () => this.move(this.z.map(() => 0))),
      button("Draw from the prior", () => this.move(this.z.map(normal))));
  }

  // Test images to start from and to go to
  makeStarts() {
    const images = uints(this.model.get("images")), pixels = this.decoder.pixels, count = images.length / pixels;
    if (!count) return [];
    const code = (k) => [...this.codes.subarray(k * this.d, (k + 1) * this.d)];
    const target = make("select", { "aria-label": "go to" }, ...Array.from({ length: count }, (_, k) =>
      make("option", { value: k, textContent: `test image ${k + 1}, of class ${this.labels[k]}` })));
    const way = make("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, "aria-label": "how far on the way" });
    let from = [...this.z];
    this.begin = () => { from = [...this.z]; way.value = 0; };
    target.onchange = this.begin;
    way.oninput = () => {
      const to = code(Number(target.value)), t = Number(way.value);
      this.move(from.map((value, k) => (1 - t) * value + t * to[k]), true);
    };
    const thumbs = Array.from({ length: count }, (_, k) => {
      const canvas = make("canvas");
      paint(canvas, Float32Array.from(images.subarray(k * pixels, (k + 1) * pixels), (v) => v / 255), this.decoder.shape);
      return make("button", { type: "button", "aria-label": `start from test image ${k + 1}, of class ${this.labels[k]}`,
        onclick: () => this.move(code(k)) }, canvas);
    });
    return [make("div", {}, "Start from a test image:", make("div", { className: "thumbs" }, ...thumbs)),
      make("label", { className: "tools" }, "and go to ", target, way)];
  }

  // One unit swept while the others stay
  makeStrip() {
    this.swept = make("select", { "aria-label": "the unit that is swept" }, ...this.order.map((unit) =>
      make("option", { value: unit, textContent: `z${unit + 1}` })));
    this.swept.onchange = () => this.drawStrip();
    this.strip.onclick = (event) => {
      const place = Math.floor(9 * event.offsetX / this.strip.clientWidth);
      this.moveUnit(Number(this.swept.value), this.sweep()[Math.max(0, Math.min(8, place))]);
    };
    return make("div", {}, make("label", { className: "tools" }, "sweep ", this.swept), this.strip);
  }

  sweep() { return Array.from({ length: 9 }, (_, k) => (k / 4 - 1) * this.extent); }

  drawStrip() {
    const unit = Number(this.swept.value), codes = this.sweep().flatMap((value) => this.z.map((old, k) => (k === unit ? value : old)));
    paint(this.strip, this.decoder.decode(codes), this.decoder.shape, 9);
    this.strip.setAttribute("aria-label", `Nine images: z${unit + 1} from ${-this.extent} to ${this.extent}, the other numbers as they are`);
  }
}

async function render({ model, el }) {
  try {
    const explorer = new Explorer(model, await decoderOf(model), el);
    return () => model.off("change:z", explorer.listen);
  } catch (error) {
    el.textContent = error.message = `This explorer could not start: ${error.message}`;
    throw error;
  }
}

export default { render };
