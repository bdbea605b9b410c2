"""HTML that is escaped unless it was built here: text can reach a page only through `element`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Markup that is safe to place in a page as it is."""

    __slots__ = ()


VOID = frozenset({"img", "meta", "br"})


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """Build one element. Attributes, and children that are not `Html`, are escaped; any that are None are left out.

    A trailing underscore in the name of an attribute is dropped (`class_`).

    Example:
        >>> element("td", "a < b", class_="number")
        '<td class="number">a &lt; b</td>'
    """
    given = "".join(
        f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Html:
    """Concatenate: `Html` as it is, anything else escaped, None left out."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None
        )
    )


def table(heads: Sequence[object], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> Html:
    """Build a table; the first `text_columns` columns are text, the others figures, aligned right."""

    def kind(place: int) -> str | None:
        return None if place < text_columns else "number"

    head = element("tr", *(element("th", cell, class_=kind(i), scope="col") for i, cell in enumerate(heads)))
    body = [element("tr", *(element("td", cell, class_=kind(i)) for i, cell in enumerate(row))) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")
