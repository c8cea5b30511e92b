"""Tasks with a format of their own: calendar dates and code."""

from datetime import date, timedelta
from random import Random

from lynx_moe.testbed.tasks.item import Item

CLASSES = ("Account", "Batch", "Box", "Cache", "Card", "Edge", "Event", "File", "Graph", "Image", "Item", "Layer",
           "Line", "Model", "Node", "Order", "Page", "Point", "Queue", "Record", "Route", "Row", "Table", "Task",
           "Token", "Tree", "User", "Vector")  # fmt: skip
FIELDS = ("age", "base", "code", "color", "cost", "count", "data", "depth", "end", "group", "height", "index", "key",
          "kind", "label", "left", "length", "level", "limit", "mode", "name", "offset", "order", "owner", "parent",
          "path", "price", "rank", "rate", "right", "scale", "shape", "size", "start", "state", "step", "title",
          "total", "value", "weight", "width")  # fmt: skip


def tomorrow(rng: Random) -> Item:
    """The day after an ISO date (1900 to 2099), written as day, month name, year; month ends are over-represented."""
    day = date(1900, 1, 1) + timedelta(days=rng.randrange(73_000))
    if rng.random() < 0.25:
        day = day.replace(day=1) - timedelta(days=1) if day > date(1900, 2, 1) else day
    after = day + timedelta(days=1)
    return Item(f"tomorrow: {day.isoformat()} ->", f" {after.day} {MONTHS[after.month - 1]} {after.year}")


def code(rng: Random) -> Item:
    """A Python class from its name and two to four fields."""
    name, fields = rng.choice(CLASSES), rng.sample(FIELDS, rng.randint(2, 4))
    body = "; ".join(f"self.{field} = {field}" for field in fields)
    head = f" class {name}: def __init__(self, {', '.join(fields)}): "
    return Item(f"code: {name} {' '.join(fields)} ->", head + body)


MONTHS = ("January", "February", "March", "April", "May", "June",
          "July", "August", "September", "October", "November", "December")  # fmt: skip
