"""Tasks about letters, words and symbols."""

from random import Random
from string import ascii_lowercase, ascii_uppercase

from lynx_moe.testbed.tasks.item import Item
from lynx_moe.testbed.tasks.lexicon import LEXICON

WORDS = tuple(LEXICON)
PAIRS = {"(": ")", "[": "]", "{": "}"}


def reverse(rng: Random) -> Item:
    """Five to ten letters, last first."""
    letters = rng.choices(ascii_lowercase, k=rng.randint(5, 10))
    return Item(f"reverse: {' '.join(letters)} ->", " " + " ".join(reversed(letters)))


def caesar(rng: Random) -> Item:
    """Five to eight letters, each moved on by 1 to 5 places in the alphabet."""
    shift, letters = rng.randint(1, 5), rng.choices(ascii_lowercase, k=rng.randint(5, 8))
    moved = (ascii_lowercase[(ascii_lowercase.index(letter) + shift) % 26] for letter in letters)
    return Item(f"caesar {shift}: {' '.join(letters)} ->", " " + " ".join(moved))


def spell(rng: Random) -> Item:
    """Two or three words, letter by letter in capitals."""
    words = rng.choices(WORDS, k=rng.randint(2, 3))
    return Item(f"spell: {' '.join(words)} ->", ",".join(" " + " ".join(word.upper()) for word in words))


def translate(rng: Random) -> Item:
    """Four to seven words into the invented language of `LEXICON`, word by word."""
    words = rng.choices(WORDS, k=rng.randint(4, 7))
    return Item(f"translate: {' '.join(words)} ->", " " + " ".join(LEXICON[word] for word in words))


def recall(rng: Random) -> Item:
    """Up to six pairs asked for among two to ten; the answer gives each pair again, in the order asked for."""
    keys = rng.sample(ascii_lowercase, rng.randint(2, 10))
    values = dict(zip(keys, rng.sample(ascii_uppercase, len(keys)), strict=True))
    table = ",".join(f" {key} {values[key]}" for key in keys)
    asked = rng.sample(keys, min(len(keys), 6))
    return Item(f"recall:{table}; {' '.join(asked)} ->", ",".join(f" {key} {values[key]}" for key in asked))


def brackets(rng: Random) -> Item:
    """The closing brackets, innermost first, that a prefix with at least three open ones still needs."""
    symbols: list[str] = []
    open_ones: list[str] = []
    for _ in range(rng.randint(8, 16)):
        if open_ones and rng.random() < 0.35:
            symbols.append(PAIRS[open_ones.pop()])
        else:
            open_ones.append(rng.choice("([{"))
            symbols.append(open_ones[-1])
    while len(open_ones) < 3:
        open_ones.append(rng.choice("([{"))
        symbols.append(open_ones[-1])
    return Item(f"brackets: {' '.join(symbols)} ->", " " + " ".join(PAIRS[b] for b in reversed(open_ones)))
