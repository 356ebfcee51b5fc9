"""Rooms are flat: inside each of them, imports make chains of at most five parts."""

from __future__ import annotations

import functools

import grimp
import pytest

DEEPEST = 5
DEEPER = {"medssl.data.store": 6}
BOTH_WAYS = {  # parts that import each other, one of them inside a function
    "medssl.encoders": ("base", "contract"),
    "medssl.objectives": ("base", "contract"),
    "medssl.data": ("index", "labels", "store"),
}


@functools.cache
def graph():
    return grimp.build_graph("medssl", cache_dir=None)


def rooms():
    """Every package; its parts are the modules and packages directly inside it."""
    return sorted({name.rpartition(".")[0] for name in graph().modules} - {"", "medssl"})


def parts_of(imports, room):
    """Which parts each part of a room imports, by their names in the room; a package counts as one part."""

    def part(module):
        return module.removeprefix(f"{room}.").split(".")[0] if module.startswith(f"{room}.") else None

    parts = {part(module): set() for module in imports.modules if part(module)}
    for module in imports.modules:
        if name := part(module):
            others = map(part, imports.find_modules_directly_imported_by(module))
            parts[name] |= {other for other in others if other not in (None, name)}
    return parts


def longest_chain(parts):
    """The longest chain of parts of which each imports the next, none twice."""

    def longest(part, above):
        ends = [longest(other, (*above, part)) for other in parts[part] if other not in above]
        return [part, *max(ends, key=len, default=[])]

    return max((longest(part, ()) for part in sorted(parts)), key=len, default=[])


@pytest.mark.parametrize("room", rooms())
def test_rooms_are_flat(room):
    parts = parts_of(graph(), room)
    together = BOTH_WAYS.get(room, ())
    merged = {  # parts that import each other count as one
        part: {"+".join(together) if other in together else other for other in others}
        for part, others in parts.items()
        if part not in together
    }
    if together:
        outside = set().union(*(parts[part] for part in together)) - set(together)
        merged["+".join(together)] = outside
    chain = longest_chain(merged)
    assert len(chain) <= DEEPER.get(room, DEEPEST), f"{room}: {' -> '.join(chain)}"


def test_chains_are_counted():
    imports = grimp.ImportGraph()
    for module in ("p", "p.a", "p.b", "p.b.x", "p.b.y", "p.c", "other"):
        imports.add_module(module)
    edges = [("p.a", "p.b.x"), ("p.b.x", "p.b.y"), ("p.b.y", "p.c"), ("p.c", "other"), ("p.c", "p")]
    for importer, imported in edges:
        imports.add_import(importer=importer, imported=imported)
    parts = parts_of(imports, "p")
    assert parts == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert longest_chain(parts) == ["a", "b", "c"]
    assert longest_chain(parts_of(imports, "p.b")) == ["x", "y"]
