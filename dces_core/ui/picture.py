"""The process flow as one picture: plain self-training and DCES's loop around it.

Boxes and wires are a hand-drawn SVG; the words lie over it as text, in the page's own font.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dces_core.ui import look

ALT = (
    "Process flow. A model generates a pool of text. Plain self-training trains the next model on a random part of it. "
    "DCES gates and clusters the pool, splits each cluster into center and edge, edits tokens of center samples, filters edge samples, "
    "and trains the next model on a mix of both. A controller sets the edge share from the dispersion of this round's pool, "
    "and the editing temperature from the entropy of this round's model on real text."
)


@dataclass(frozen=True)
class Sheet:
    """The visible part of a drawing, in its own units."""

    kind: str
    left: int
    top: int
    width: int
    height: int

    def place(self, x: float, y: float) -> str:
        """A point of the drawing as CSS."""
        return f"left:{100 * (x - self.left) / self.width:.2f}%;top:{100 * (y - self.top) / self.height:.2f}%"

    def label(self, box: Box) -> str:
        """A box's words as HTML."""
        below = f"<i>{box.below}</i>" if box.below else ""
        return f'<span style="{self.place(box.x + box.width / 2, box.y + box.height / 2)}"><b>{box.title}</b>{below}</span>'

    def note(self, x: int, y: int, words: str, colour: str = "") -> str:
        """A word beside a wire."""
        style = f"{self.place(x, y)};color:{colour}" if colour else self.place(x, y)
        return f'<span style="{style}">{words if colour else f"<i>{words}</i>"}</span>'

    def draw(self, boxes: Sequence[Box], wires: Sequence[str], notes: Sequence[str]) -> str:
        """The drawing as HTML."""
        lines = "".join([*wires, *(box.frame() for box in boxes)])
        frame = f"{self.left} {self.top} {self.width} {self.height}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{frame}">{lines}</svg>'
        return f'<div class="flow {self.kind}">{look.image(svg, ALT)}{"".join([*map(self.label, boxes), *notes])}</div>'


@dataclass(frozen=True)
class Box:
    """A step: its place, its name, and in small what it does."""

    x: int
    y: int
    width: int
    height: int
    title: str
    below: str
    colour: str

    def frame(self) -> str:
        """The box as SVG."""
        shape = f'x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="7"'
        return f'<rect {shape} fill="{look.faint(0.04)}" stroke="{self.colour}" stroke-width="1.5"/>'


def flow() -> str:
    """The picture as HTML, in the colours of the theme; drawn downwards where it is too narrow for a row."""
    colours = look.faint(0.85), look.look("plain").colour, look.look("dces").colour
    return f'<div class="flows">{_across(*colours)}{_down(*colours)}</div>'


def _across(ink: str, plain: str, dces: str) -> str:
    sheet = Sheet("across", 34, 8, 1038, 340)
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
        wire("M780 34H858Q870 34 870 46V138", dces, "5 4"), wire("M701 56V90", dces, "5 4"),
        wire("M1032 204V330Q1032 342 1020 342H108Q96 342 96 330V206", ink),
    ]  # fmt: skip
    notes = [
        sheet.note(300, 36, "entropy on real text"), sheet.note(580, 62, "dispersion"), sheet.note(750, 74, "temperature"),
        sheet.note(912, 74, "edge share"), sheet.note(548, 330, "next round"),
        sheet.note(540, 281, "plain self-training: N samples at random", plain),
    ]  # fmt: skip
    return sheet.draw(boxes, wires, notes)


def _down(ink: str, plain: str, dces: str) -> str:
    sheet = Sheet("down", 8, 6, 400, 580)
    boxes = [
        Box(170, 10, 120, 50, "Model", "of this round", ink), Box(170, 92, 120, 50, "Pool", "P samples", ink),
        Box(170, 170, 120, 50, "Gate", "loops, empties", dces), Box(170, 248, 120, 50, "Cluster", "by meaning", dces),
        Box(84, 342, 120, 50, "Center", "edit tokens", dces), Box(236, 342, 120, 50, "Edge", "filter quality", dces),
        Box(170, 438, 120, 50, "Select", "N samples", dces), Box(170, 530, 120, 50, "Train", "the next model", ink),
        Box(44, 170, 104, 50, "Controller", "", dces),
    ]  # fmt: skip
    wires = [
        wire("M230 60V90", ink), wire("M230 142V168", dces), wire("M230 220V246", dces),
        wire("M200 298C200 322 144 316 144 340", dces), wire("M260 298C260 322 296 316 296 340", dces),
        wire("M144 392C144 420 208 412 208 436", dces), wire("M296 392C296 420 252 412 252 436", dces), wire("M230 488V528", ink),
        wire("M290 117H384Q396 117 396 129V543Q396 555 384 555H292", plain),
        wire("M170 46H108Q96 46 96 58V168", dces, "5 4"), wire("M170 273H144Q132 273 132 261V222", dces, "5 4"),
        wire("M58 220V451Q58 463 70 463H168", dces, "5 4"), wire("M98 220V340", dces, "5 4"),
        wire("M170 555H32Q20 555 20 543V36Q20 24 32 24H168", ink),
    ]  # fmt: skip
    notes = [
        sheet.note(58, 112, "entropy on<br>real text"), sheet.note(136, 287, "dispersion"), sheet.note(136, 314, "temperature"),
        sheet.note(92, 450, "edge share"), sheet.note(94, 542, "next round"),
        sheet.note(342, 196, "plain<br>self-training:<br>N samples<br>at random", plain),
    ]  # fmt: skip
    return sheet.draw(boxes, wires, notes)


def wire(path: str, colour: str, dash: str = "") -> str:
    """An arrow along a path: the head points where the last stroke goes."""
    name = "h" + "".join(character for character in path if character.isalnum())
    head = f'<path d="M0 0.6 7.4 4 0 7.4z" fill="{colour}"/>'
    marker = f'<marker id="{name}" viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">{head}</marker>'
    return (
        f'{marker}<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}" marker-end="url(#{name})"/>'
    )
