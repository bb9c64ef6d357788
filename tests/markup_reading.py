"""Reading positions and texts back from the SVG and HTML that the charts make."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element


def parse(markup: str | None) -> Element:
    """A chart that must be there, as XML."""
    assert markup is not None
    return ElementTree.fromstring(markup)


def parse_page(page: str) -> Element:
    """The page as XML: every element closed, every attribute quoted, every text escaped."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def styled_any(root: Element, style: str) -> list[Element]:
    """The elements that have a class."""
    return [e for e in root.iter() if style in e.get("class", "").split()]


def styled(root: Element, tag: str, style: str) -> list[Element]:
    """The elements of one kind that have a class."""
    return [e for e in root.iter(tag) if style in e.get("class", "").split()]


def percent(element: Element, name: str) -> float:
    """An attribute that must be a percentage, as a share."""
    text = element.get(name, "")
    assert text.endswith("%"), f"{name}={text!r} is not a percentage"
    return float(text[:-1]) / 100


def corners(path: Element) -> list[tuple[float, float]]:
    """The points (x, y) of a path of straight lines."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def said(element: Element) -> str:
    """All text in an element, with plain spaces."""
    return "".join(element.itertext()).replace("\u00a0", " ")
