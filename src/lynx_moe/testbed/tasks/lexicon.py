"""A fixed invented language: 165 common English nouns, verbs and adjectives, each with a made-up word for it."""

from random import Random

_ENGLISH = """
apple arm baby ball bird black blue boat body bone book box boy bread bridge bright bring brown build burn cake call
carry cat chair child city clean climb cloud coat cold cook corn count cow cup dance dark day deep dog door draw
dream drink dry ear earth eat egg eye face fall farm fast father field find fire fish floor fly foot forest friend
fruit garden girl give glass gold good grass green hand happy hat head heart heavy help hill horse house ice iron
island jump key king kitchen knife lake lamp laugh leaf learn light lion long milk moon mother mountain mouse mouth
music name new night nose old open paper path pen plant play queen quick quiet rain read red river road rock roof
room rope round run sand school sea see seed ship shoe short sing sky sleep slow small snow soft song star stone
strong summer sun swim table tall tree walk wall warm water white wind winter
"""


def _invent(num_words: int, seed: int = 7) -> list[str]:
    """`num_words` different words of two or three consonant-vowel syllables."""
    rng, words = Random(seed), dict[str, None]()
    while len(words) < num_words:
        syllables = ("".join((rng.choice("bdfgklmnprstvz"), rng.choice("aeiou"))) for _ in range(rng.choice((2, 2, 3))))
        words["".join(syllables)] = None
    return list(words)


LEXICON: dict[str, str] = dict(zip(_ENGLISH.split(), _invent(len(_ENGLISH.split())), strict=True))
