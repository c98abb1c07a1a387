() => {
  // Takes out of axe-core's sight what it can say nothing new about; what goes keeps its place. Words that look alike:
  // it spends most of its time on the contrast of each token of each listing; of plain spans with the same look and the
  // same looks around them the first one stays, and so does the first one in every block. The strokes of formulas:
  // MathJax draws them for the eye alone, without any text or a place for the focus; what a screen reader reads of a
  // formula stays. Returns a function that brings all back.
  const LOOKS = ["color", "backgroundColor", "backgroundImage", "opacity", "fontSize", "fontWeight", "textShadow",
    "filter", "mixBlendMode", "position", "display", "visibility"];
  const numbers = new Map(), known = new WeakMap(), seen = new Set(), blocks = new Set(), hidden = [];

  // A number that elements share if they and all that they stand in look the same, and what the word is painted on.
  const kind = (element) => {
    if (!element) return { number: 0, ground: null };
    if (!known.has(element)) {
      const above = kind(element.parentElement), style = getComputedStyle(element);
      const look = [above.number, element.localName, ...LOOKS.map((name) => style[name])].join("|");
      if (!numbers.has(look)) numbers.set(look, numbers.size + 1);
      const painted = style.backgroundColor != "rgba(0, 0, 0, 0)" || style.backgroundImage != "none";
      known.set(element, { number: numbers.get(look), ground: painted ? element : above.ground });
    }
    return known.get(element);
  };

  const inside = (element, ground) => {
    const [a, b] = [element, ground ?? document.body].map((one) => one.getBoundingClientRect());
    return a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom;
  };

  for (const element of document.querySelectorAll("article span:not(:has(*)):not([style])")) {
    if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue; // folded in, say
    const { number, ground } = kind(element), look = `${number} ${inside(element, ground)}`;
    const plain = element.getAttributeNames().every((name) => name == "class");
    const named = element.closest("a, button, label, summary, th, h1, h2, h3, h4, h5, h6");
    const block = element.closest(":not(span, code, em, strong)");
    if (seen.has(look) && blocks.has(block) && plain && !named) hidden.push(element);
    if (/[\p{L}\p{N}]{2}/u.test(element.textContent)) seen.add(look); // axe judges no single characters, no signs
    blocks.add(block);
  }
  const drawings = [...document.querySelectorAll("mjx-container > mjx-math[aria-hidden=true]")]
    .filter((one) => !one.textContent.trim() && !one.querySelector("a, [tabindex], [id]"))
    .map((one) => ({ one, strokes: [...one.childNodes], style: one.style.cssText, size: one.getBoundingClientRect() }));

  for (const element of hidden) element.style.visibility = "hidden"; // once all have been looked at
  for (const { one, size } of drawings) {
    one.replaceChildren();
    one.style.cssText += `; display: inline-block; width: ${size.width}px; height: ${size.height}px`;
  }
  return () => {
    for (const element of hidden) element.removeAttribute("style");
    for (const { one, strokes, style } of drawings) {
      one.replaceChildren(...strokes);
      one.style.cssText = style;
    }
  };
}
