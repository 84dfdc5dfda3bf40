"""A formula drawn as a tree, as text and as SVG; the same formula gives the same bytes."""

from __future__ import annotations

from xml.sax.saxutils import escape

from zpruner.formula import Tree

_STEP_X, _STEP_Y, _RADIUS, _MARGIN = 56, 60, 20, 28


def draw_text(tree: Tree) -> str:
    """Return the tree as indented lines with branches, one node a line."""
    return "\n".join(_lines(tree, "", ""))


def draw_svg(tree: Tree) -> str:
    """Return the tree as an SVG document: operands below their operator, left to right; no script, no external font."""
    places: list[tuple[Tree, float, int, int | None]] = []
    width = _place(tree, 0, 0, None, places) * _STEP_X + 2 * _MARGIN - _STEP_X + 2 * _RADIUS
    height = tree.depth * _STEP_Y + 2 * _MARGIN + 2 * _RADIUS

    def at(index: int) -> tuple[float, float]:
        _, column, level, _ = places[index]
        return _MARGIN + _RADIUS + column * _STEP_X, _MARGIN + _RADIUS + level * _STEP_Y

    edges, nodes = [], []
    for index, (node, _, _, parent) in enumerate(places):
        x, y = at(index)
        if parent is not None:
            px, py = at(parent)
            edges.append(f'<line x1="{px:g}" y1="{py:g}" x2="{x:g}" y2="{y:g}" stroke="#6b7280"/>')
        nodes.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{_RADIUS}" fill="#f3f4f6" stroke="#374151"/>'
            f'<text x="{x:g}" y="{y:g}" dy="0.35em" text-anchor="middle">{escape(node.name)}</text>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" font-family="sans-serif" font-size="13" role="img">',
            f"<title>{escape(str(tree))}</title>",
            *edges,
            *nodes,
            "</svg>",
            "",
        ]
    )


def _lines(tree: Tree, first: str, rest: str) -> list[str]:
    lines = [first + tree.name]
    for i, child in enumerate(tree.children, start=1):
        last = i == len(tree.children)
        lines += _lines(child, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))
    return lines


def _place(
    tree: Tree, left: int, level: int, parent: int | None, places: list[tuple[Tree, float, int, int | None]]
) -> int:
    """Append the nodes of `tree` from column `left` on, parents centred over their operands; return its columns."""
    mine = len(places)
    places.append((tree, 0.0, level, parent))
    columns, centres = 0, []
    for child in tree.children:
        index = len(places)
        columns += _place(child, left + columns, level + 1, mine, places)
        centres.append(places[index][1])
    centre = sum(centres) / len(centres) if centres else float(left)
    places[mine] = (tree, centre, level, parent)
    return max(columns, 1)
