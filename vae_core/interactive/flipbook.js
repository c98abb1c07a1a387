// Pictures drawn beforehand, one for each position of the sliders; what the sliders do is show the one that belongs.
// Jupyter and the built page call render({model, el}), with or without a kernel; the fields are those of Flipbook in
// flipbook.py: `names` and `labels` of the sliders, their `position`, and `frames` (head, middles, tail, words).

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    name in element ? (element[name] = value) : element.setAttribute(name, value);
  element.append(...children);
  return element;
}

class Flipbook {
  constructor(model, root) {
    Object.assign(this, { model, labels: model.get("labels"), frames: model.get("frames") });
    const { middles, words } = this.frames, count = this.labels.reduce((product, all) => product * all.length, 1);
    if (middles.length !== count || words.length !== count)
      throw new Error(`there are ${middles.length} pictures and ${words.length} texts for ${count} positions`);
    this.picture = make("div", { className: "picture", role: "img" });
    this.words = make("output", { "aria-live": "polite" });
    this.sliders = model.get("names").map((name, k) => this.makeSlider(name, k));
    const rows = this.sliders.map((slider) => slider.parentElement);
    root.append(make("div", { className: "flipbook" }, ...rows, this.picture, this.words));
    this.show = () => this.draw();
    model.on("change:position", this.show);
    this.draw();
  }

  makeSlider(name, k) {
    const slider = make("input", { type: "range", min: 0, max: this.labels[k].length - 1, step: 1, "aria-label": name });
    slider.setAttribute("data-lm-suppress-shortcuts", "true");   // or JupyterLab takes the arrow keys
    slider.oninput = () => {
      this.model.set("position", this.sliders.map((each) => Number(each.value)));
      this.model.save_changes();
    };
    make("label", {}, make("span", { textContent: name }), slider, make("span"));
    return slider;
  }

  draw() {                                         // the last slider's positions stand side by side
    const position = this.model.get("position"), { head, middles, tail, words } = this.frames;
    const at = this.labels.reduce((before, all, k) => before * all.length + position[k], 0);
    this.picture.innerHTML = head + middles[at] + tail;
    this.picture.firstElementChild.ariaHidden = "true";   // the words stand for it
    this.picture.setAttribute("aria-label", words[at]);
    this.words.textContent = words[at];
    this.sliders.forEach((slider, k) => {
      slider.value = position[k];
      slider.nextSibling.textContent = this.labels[k][position[k]];
      slider.setAttribute("aria-valuetext", this.labels[k][position[k]]);
    });
  }
}

function render({ model, el }) {
  try {
    const book = new Flipbook(model, el);
    return () => model.off("change:position", book.show);
  } catch (error) {
    el.textContent = error.message = `These pictures could not be shown: ${error.message}`;
    throw error;
  }
}

export default { render };
