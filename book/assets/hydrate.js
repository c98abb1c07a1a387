// Brings widgets of a built page to life without a kernel and without require.js.
// myst-nb leaves every widget's state in the page. A widget that carries its own JavaScript (an
// anywidget: `_esm`, `_css`) is started from that state with the call Jupyter makes, render({model, el}).
// Any other widget needs Python to answer it; its place says so.
(() => {
  "use strict";
  const KIND = "application/vnd.jupyter.widget-";

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  class Model {                                   // what a render function may ask of a model
    constructor({ state, buffers = [] }, manager) {
      this.widget_manager = manager;
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

  class Manager {                                 // hands out the models of a page, each made once
    constructor(entries) { Object.assign(this, { entries, models: new Map() }); }
    async get_model(id) {
      if (!this.entries[id]) throw new Error(`this page has no model ${id}`);
      if (!this.models.has(id)) this.models.set(id, new Model(this.entries[id], this));
      return this.models.get(id);
    }
  }

  async function show(element, manager, id) {
    const { _esm: source, _css: style } = manager.entries[id]?.state ?? {};
    if (!source) {
      element.className = "needs-kernel";
      element.textContent = "Sliders stand here when this page runs as a notebook: they ask Python for each picture.";
      return;
    }
    const known = manager.models.has(id), model = await manager.get_model(id);
    const { initialize, render } = await widget(source);
    if (style) document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
    if (!known) await initialize?.({ model });
    await render({ model, el: element });
    for (const picture of element.closest(".cell_output")?.querySelectorAll("img.without-script") ?? [])
      (picture.closest("figure") ?? picture).hidden = true;   // it stood in for the widget
  }

  function start() {
    const states = {};
    for (const script of document.querySelectorAll(`script[type="${KIND}state+json"]`))
      Object.assign(states, JSON.parse(script.textContent).state);
    const manager = new Manager(states);
    for (const script of document.querySelectorAll(`script[type="${KIND}view+json"]`)) {
      const id = JSON.parse(script.textContent).model_id;
      const element = document.createElement("div");
      script.after(element);
      show(element, manager, id).catch((error) => {
        element.className = "needs-kernel";
        element.textContent = `This interactive picture failed: ${error.message}`;
        console.error(error);
      });
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
