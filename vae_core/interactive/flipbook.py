"""A flipbook: figures drawn beforehand, one for each position of its sliders. It needs no kernel.

It can show anything that Python draws; `explorer.LatentExplorer` computes its images in the browser instead. It needs
anywidget (`pip install "vae_core[widgets]"`); the JavaScript is `flipbook.js`.
"""

import base64
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anywidget
import numpy as np
import traitlets
from IPython.display import SVG, Image
from numpy.typing import ArrayLike

LARGEST = 1_000_000  # characters of all figures together, since pages are read on phones too
PNG = b"\x89PNG\r\n\x1a\n"
XMLNS = 'xmlns="http://www.w3.org/2000/svg"'  # without it an SVG that stands alone (`still`) is blank
Picture = str | bytes  # SVG, or a PNG


def points(x: ArrayLike, y: ArrayLike) -> str:
    """Return the corners x, y (N,) of an SVG polyline or polygon, "x,y x,y …", rounded to a tenth to save bytes."""
    corners = zip(np.round(np.asarray(x, float), 1).tolist(), np.round(np.asarray(y, float), 1).tolist(), strict=True)
    return " ".join(f"{a:g},{b:g}" for a, b in corners)


def svg(width: int, height: int, *shapes: str) -> str:
    """Return a figure of these shapes, `width` × `height` units; it scales with the page."""
    return f'<svg {XMLNS} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{"".join(shapes)}</svg>'


class Flipbook(anywidget.AnyWidget):
    """Sliders that choose among figures, all of which are drawn when it is created, so that it needs no kernel.

    `values` holds the current values of the sliders, and may be set; the traitlet `position` counts them from 0, for
    `observe`.

    Args:
        sliders: Each slider's name and its values, in order.
        draw: `draw(*values)` returns a figure and a description of it. The figure is SVG text (`svg`; what it shares
            with the others is stored once) or the bytes of a PNG. The description is shown below it, read aloud by
            screen readers, and used as its alternative text.
        start: One value per slider; the first of each if None.

    Raises:
        ValueError: A slider has fewer than two different values, `start` is not among them, `draw` returns something
            else, or the figures take more than `LARGEST` characters together.
    """

    _esm = Path(__file__).with_name("flipbook.js")
    _css = Path(__file__).with_name("flipbook.css")
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    labels = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    position = traitlets.List(traitlets.Int()).tag(sync=True)
    frames = traitlets.Dict().tag(sync=True)  # as `_packed` returns them; the last slider varies fastest

    def __init__(
        self,
        sliders: Mapping[str, Iterable[Any]],
        draw: Callable[..., tuple[Picture, str]],
        start: Sequence[Any] | None = None,
    ) -> None:
        self._choices = {name: list(values) for name, values in sliders.items()}
        labels = _labels(self._choices)
        frames = _packed([_drawn(draw, values) for values in itertools.product(*self._choices.values())])
        super().__init__(names=list(labels), labels=list(labels.values()), frames=frames, position=[0] * len(labels))
        if start is not None:
            self.values = start

    @property
    def values(self) -> tuple[Any, ...]:
        """The current value of each slider."""
        return tuple(choices[k] for choices, k in zip(self._choices.values(), self.position, strict=True))

    @values.setter
    def values(self, wanted: Sequence[Any]) -> None:
        if len(wanted) != len(self.names):
            raise ValueError(f"values must be one for each of {', '.join(self.names)}, got {wanted!r}")
        for name, labels, value in zip(self.names, self.labels, wanted, strict=True):
            if _label(value) not in labels:
                raise ValueError(f"{name} has no position {value!r}: it runs from {labels[0]} to {labels[-1]}")
        self.position = [labels.index(_label(value)) for labels, value in zip(self.labels, wanted, strict=True)]

    @traitlets.validate("position")
    def _check_position(self, proposal: dict) -> list[int]:
        value, counts = proposal["value"], [len(labels) for labels in self.labels]
        if len(value) != len(counts) or not all(0 <= k < n for k, n in zip(value, counts, strict=True)):
            allowed = " and ".join(f"0 to {n - 1}" for n in counts)
            raise traitlets.TraitError(f"position must be whole numbers from {allowed}, got {value!r}")
        return value

    def still(self) -> SVG | Image:
        """Return the current figure, for paper and for browsers without scripts: show it in the flipbook's own cell.

        With the class `without-script` (cell metadata mystnb.image.classes) a page hides it once the flipbook is shown.
        """
        at = np.ravel_multi_index(self.position, [len(labels) for labels in self.labels])
        picture = self.frames["head"] + self.frames["middles"][at] + self.frames["tail"]
        return SVG(picture) if picture.startswith("<svg") else Image(base64.b64decode(picture.split('"')[1][22:]))

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return the bundle of any widget, with a text that is the same in every session."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data:
            data["text/plain"] = f"Flipbook of {len(self.frames['middles'])} pictures: {', '.join(self.names)}"
        return bundle


def _label(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _labels(choices: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Return the values as they are shown; they must differ, so that positions can be told apart."""
    if not choices:
        raise ValueError("sliders must name at least one slider and its values, got none")
    labels = {name: [_label(value) for value in values] for name, values in choices.items()}
    for name, shown in labels.items():
        if len(shown) < 2 or len(set(shown)) < len(shown):
            raise ValueError(f"the slider {name} needs at least two values, all different, got {', '.join(shown)}")
    return labels


def _drawn(draw: Callable[..., tuple[Picture, str]], values: tuple[Any, ...]) -> tuple[str, str]:
    """Return one frame as HTML, and its description."""
    call, answer = f"draw({', '.join(map(_label, values))})", draw(*values)
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], str) and answer[1].strip()):
        raise ValueError(f"{call} must give a picture and the words that tell it, got {answer!r:.60}")
    picture, words = answer
    if isinstance(picture, bytes) and picture.startswith(PNG):
        return f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}" alt="">', words
    try:
        if not isinstance(picture, str) or not ElementTree.fromstring(picture).tag.endswith("svg"):
            raise ValueError(f"{call} must give SVG text or the bytes of a PNG, got {picture!r:.60}")
    except ElementTree.ParseError as error:
        raise ValueError(f"{call} gives SVG that cannot be read: {error}") from error
    picture = picture.strip()
    return picture if "xmlns=" in picture else picture.replace("<svg", f"<svg {XMLNS}", 1), words


def _beginning(texts: Sequence[str]) -> str:
    """Return the longest common beginning; the first and the last text in alphabetical order differ earliest."""
    first, last = min(texts), max(texts)
    length = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _packed(frames: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the common `head` and `tail` of all figures, and the `middles` and the `words` of each."""
    pictures, words = ([frame[part] for frame in frames] for part in (0, 1))
    head = _beginning(pictures)
    rests = [picture.removeprefix(head) for picture in pictures]
    tail = _beginning([rest[::-1] for rest in rests])[::-1]
    packed = {"head": head, "tail": tail, "middles": [rest.removesuffix(tail) for rest in rests], "words": words}
    size = len(head) + len(tail) + sum(map(len, packed["middles"])) + sum(map(len, words))
    if size > LARGEST:
        raise ValueError(f"the {len(frames)} pictures take {size:,} characters, more than {LARGEST:,}; draw fewer")
    return packed
