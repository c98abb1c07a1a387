// Brings widgets of a built page to life without a kernel and without require.js.
// myst-nb leaves every widget's state in the page. A widget that carries its own JavaScript (an
// anywidget: `_esm`) is started from that state with the call Jupyter makes, render({model, el}).
// Any other widget needs Python to answer it; its place says so.
(() => {
  "use strict";
  const KIND = "application/vnd.jupyter.widget-";

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  class Model {                                   // what a render function may ask of a model
    constructor({ state, buffers = [] }) {
      this.state = structuredClone(state);
      this.listeners = new Map();
      for (const { path, data } of buffers) {
        const parent = path.slice(0, -1).reduce((at, key) => at[key], this.state);
        parent[path.at(-1)] = new DataView(bytes(data).buffer);
      }
    }
    get(key) { return this.state[key]; }
    set(key, value) {
      if (this.state[key] === value) return;
      this.state[key] = value;
      for (const event of [`change:${key}`, "change"]) this.listeners.get(event)?.forEach((call) => call());
    }
    save_changes() {}                             // nobody to tell
    send() {}
    on(events, call) {
      for (const event of events.split(" ")) {
        if (!this.listeners.has(event)) this.listeners.set(event, new Set());
        this.listeners.get(event).add(call);
      }
    }
    off(event, call) { call ? this.listeners.get(event)?.delete(call) : this.listeners.delete(event); }
  }

  async function widget(source) {
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    try {
      const { default: found } = await import(url);
      return typeof found === "function" ? await found() : found;
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  async function show(element, entry, models, id) {
    if (!entry?.state?._esm) {
      element.className = "needs-kernel";
      element.textContent = "Sliders stand here when this page runs as a notebook: they ask Python for each picture.";
      return;
    }
    const { initialize, render } = await widget(entry.state._esm);
    if (!models.has(id)) {
      models.set(id, new Model(entry));
      await initialize?.({ model: models.get(id) });
    }
    await render({ model: models.get(id), el: element });
  }

  function start() {
    const states = {}, models = new Map();
    for (const script of document.querySelectorAll(`script[type="${KIND}state+json"]`))
      Object.assign(states, JSON.parse(script.textContent).state);
    for (const script of document.querySelectorAll(`script[type="${KIND}view+json"]`)) {
      const id = JSON.parse(script.textContent).model_id;
      const element = document.createElement("div");
      script.after(element);
      show(element, states[id], models, id).catch((error) => {
        element.className = "needs-kernel";
        element.textContent = `This interactive picture failed: ${error.message}`;
        console.error(error);
      });
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
