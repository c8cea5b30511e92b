"""Which part of any data a document belongs to, by its SHA-256: no two commands and no two machines disagree.

The digest's first byte says what is held out of training, its second to which split a document belongs; so either is
known without the other.
"""

import hashlib

SPLITS = ("calibrate", "tune", "test")
HELD_OUT = "held_out.jsonl"  # in the folder of a model of text: documents that it was not trained on


def is_held_out(document: str) -> bool:
    """Whether `document` is for testing only: one in sixteen, by SHA-256, so every machine splits alike."""
    return _digest(document)[0] % 16 == 0


def split_of(document: str) -> str:
    """ "test" for half of all documents, "tune" and "calibrate" for a quarter each."""
    return ("test", "tune", "test", "calibrate")[_digest(document)[1] % 4]


def _digest(document: str) -> bytes:
    return hashlib.sha256(document.encode()).digest()
