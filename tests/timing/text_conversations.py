"""Conversations for the model *text*, shaped like ShareGPT's: `python tests/timing/text_conversations.py FILE`.

They are for `lynx-moe load text --trace FILE --kind sharegpt`.

Who asks begins a held-out document (split test, windows of 120 characters), and what is answered is as long as what
follows there. So a KL that a server measures under load is one on text that the model was not trained on.
"""

import json
import random
import sys
from pathlib import Path

from lynx_moe.testbed.locate import path
from lynx_moe.testbed.text import held_out
from lynx_moe.testbed.text.documents import split_of

ASKED, ANSWERED, ROOM = 120, (100, 600), 40  # characters


def main(target: Path) -> None:
    rng, found = random.Random(3), []
    for document in held_out.read(path("text")):
        text, place = document["text"], 0
        while split_of(text) == "test" and place + ASKED + ROOM < len(text):
            ends = min(place + ASKED + rng.randint(*ANSWERED), len(text))
            turns = (("human", text[place : place + ASKED]), ("gpt", text[place + ASKED : ends]))
            found.append({"conversations": [{"from": who, "value": value} for who, value in turns]})
            place = ends
    rng.shuffle(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found), encoding="utf-8")
    print(f"{len(found)} conversations: {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
