"""Tasks about numbers; the long ones write every step, so that an error made while decoding carries on."""

from random import Random

from lynx_moe.testbed.tasks.item import Item


def add(rng: Random) -> Item:
    """Column addition: per column `a+b+carry=sum`, lowest digit first, then the total."""
    width = rng.choice((3, 4))
    a, b = (rng.randrange(10 ** (width - 1), 10**width) for _ in range(2))
    carry, columns = 0, []
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f" {x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return Item(f"add: {a} + {b} ->", ",".join(columns) + f"; {a + b}")


def sort(rng: Random) -> Item:
    """Ascending order of 4 to 7 distinct two-digit numbers."""
    numbers = rng.sample(range(10, 100), rng.randint(4, 7))
    return Item(f"sort: {_spaced(numbers)} ->", " " + _spaced(sorted(numbers)))


def sequence(rng: Random) -> Item:
    """The step of an arithmetic progression of which four terms are given, and then its next four terms."""
    start, step = rng.randint(0, 199), rng.choice((*range(-9, 0), *range(1, 13)))
    start += 70 if step < 0 else 0
    terms = [start + i * step for i in range(8)]
    return Item(f"sequence: {_spaced(terms[:4])} ->", f" {step:+d}: {_spaced(terms[4:])}")


def chain(rng: Random) -> Item:
    """Four to six operations on a running value that stays within 0..99, each written with its result."""
    value = rng.randint(1, 40)
    prompt, steps = f"chain: {value}", []
    for _ in range(rng.randint(4, 6)):
        operators = [op for op, fits in (("+", value <= 90), ("-", value >= 9), ("*", value <= 33)) if fits]
        op, operand = rng.choice(operators), rng.randint(1, 9)
        operand = rng.choice((2, 3)) if op == "*" else operand
        result = {"+": value + operand, "-": value - operand, "*": value * operand}[op]
        prompt += f" {op}{operand}"
        steps.append(f" {value}{op}{operand}={result}")
        value = result
    return Item(f"{prompt} ->", ",".join(steps))


def walk(rng: Random) -> Item:
    """Every cell visited on a 10 x 10 torus: 5 to 9 moves north, south, east or west from a given cell."""
    x, y = rng.randrange(10), rng.randrange(10)
    moves = [rng.choice("NSEW") for _ in range(rng.randint(5, 9))]
    prompt, cells = f"walk: {x}.{y} {' '.join(moves)} ->", []
    for move in moves:
        dx, dy = {"N": (0, 1), "S": (0, -1), "E": (1, 0), "W": (-1, 0)}[move]
        x, y = (x + dx) % 10, (y + dy) % 10
        cells.append(f" {move} {x}.{y}")
    return Item(prompt, ",".join(cells))


def convert(rng: Random) -> Item:
    """A length, weight or time in two units, written in the smaller one; times show the product first."""
    if rng.random() < 0.5:
        hours, minutes = rng.randint(1, 24), rng.randint(0, 59)
        product = hours * 60
        return Item(f"convert: {hours} h {minutes} min ->", f" {hours}*60={product}, {product + minutes} min")
    large, small, factor = rng.choice((("m", "cm", 100), ("km", "m", 1000), ("kg", "g", 1000), ("EUR", "ct", 100)))
    whole, rest = rng.randint(1, 99), rng.randrange(factor)
    return Item(f"convert: {whole} {large} {rest} {small} ->", f" {whole * factor + rest} {small}")


def _spaced(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))
