"""The process flow as one picture: plain self-training and DCES's loop around it.

Boxes and wires are a hand-drawn SVG; the words lie over it as text, in the page's own font.
"""

from __future__ import annotations

from dces_core.ui import look

ALT = (
    "Process flow. A model generates a pool of text. Plain self-training trains the next model on a random part of it. "
    "DCES gates and clusters the pool, splits each cluster into center and edge, edits tokens of center samples, filters edge samples, "
    "and trains the next model on a mix of both. A controller sets the edge share from the dispersion of this round's pool, "
    "and the editing temperature from the entropy of this round's model on real text."
)
LEFT, TOP, WIDTH, HEIGHT = 34, 8, 1038, 340  # the visible part, in the drawing's units


def flow() -> str:
    """The picture as HTML, in the colours of the theme."""
    ink, plain, dces = look.faint(0.85), look.look("plain").colour, look.look("dces").colour
    boxes = [
        Box(36, 140, 120, 64, "Model", "of this round", ink), Box(198, 140, 120, 64, "Pool", "P samples", ink),
        Box(344, 140, 108, 64, "Gate", "loops, empties", dces), Box(480, 140, 108, 64, "Cluster", "by meaning", dces),
        Box(640, 92, 122, 60, "Center", "edit tokens", dces), Box(640, 198, 122, 60, "Edge", "filter quality", dces),
        Box(816, 140, 108, 64, "Select", "N samples", dces), Box(962, 140, 108, 64, "Train", "the next model", ink),
        Box(622, 12, 158, 44, "Controller", "", dces),
    ]  # fmt: skip
    wires = [
        wire("M156 172H196", ink), wire("M318 172H342", dces), wire("M452 172H478", dces),
        wire("M588 160C612 150 612 122 638 122", dces), wire("M588 184C612 194 612 228 638 228", dces),
        wire("M762 122C792 122 786 160 814 164", dces), wire("M762 228C792 228 786 184 814 180", dces), wire("M924 172H960", ink),
        wire("M258 204V282Q258 294 270 294H988Q1000 294 1000 282V206", plain),
        wire("M96 140V34Q96 22 108 22H620", dces, "5 4"), wire("M534 140V56Q534 44 546 44H620", dces, "5 4"),
        wire("M780 34H858Q870 34 870 46V138", dces, "5 4"),
        wire("M701 56V90", dces, "5 4"),
        wire("M1032 204V330Q1032 342 1020 342H108Q96 342 96 330V206", ink),
    ]  # fmt: skip
    words = [
        note(300, 36, "entropy on real text"),
        note(580, 62, "dispersion"),
        note(750, 74, "temperature"),
        note(912, 74, "edge share"),
        note(548, 330, "next round"),
    ]
    words.append(note(540, 281, "plain self-training: N samples at random", plain))
    drawn = "".join([*wires, *(box.frame() for box in boxes)])
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{LEFT} {TOP} {WIDTH} {HEIGHT}">{drawn}</svg>'
    labels = "".join([*(box.label() for box in boxes), *words])
    return f'<div class="scroll"><div class="flow">{look.image(svg, ALT)}{labels}</div></div>'


class Box:
    """A step: its place, its name, and in small what it does."""

    def __init__(self, x: int, y: int, width: int, height: int, title: str, below: str, colour: str) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self.title, self.below, self.colour = title, below, colour

    def frame(self) -> str:
        """The box as SVG."""
        shape = f'x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="7"'
        return f'<rect {shape} fill="{look.faint(0.04)}" stroke="{self.colour}" stroke-width="1.5"/>'

    def label(self) -> str:
        """The words as HTML."""
        below = f"<i>{self.below}</i>" if self.below else ""
        return f'<span style="{place(self.x + self.width / 2, self.y + self.height / 2)}"><b>{self.title}</b>{below}</span>'


def place(x: float, y: float) -> str:
    """A point of the drawing as CSS."""
    return f"left:{100 * (x - LEFT) / WIDTH:.2f}%;top:{100 * (y - TOP) / HEIGHT:.2f}%"


def wire(path: str, colour: str, dash: str = "") -> str:
    """An arrow along a path: the head points where the last stroke goes."""
    name = "h" + "".join(character for character in path if character.isalnum())
    head = f'<path d="M0 0.6 7.4 4 0 7.4z" fill="{colour}"/>'
    marker = f'<marker id="{name}" viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">{head}</marker>'
    return (
        f'{marker}<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}" marker-end="url(#{name})"/>'
    )


def note(x: int, y: int, words: str, colour: str = "") -> str:
    """A word beside a wire."""
    style = f"{place(x, y)};color:{colour}" if colour else place(x, y)
    return f'<span style="{style}">{words if colour else f"<i>{words}</i>"}</span>'
