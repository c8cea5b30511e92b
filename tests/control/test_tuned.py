"""The file of tuned settings: what is understood, what is refused, and what acts at sizes that were not measured."""

import json

import pytest

from lynx_moe.control.tuned import KEY, ByBatch, Tuned

GIVEN = {
    KEY: 1,
    "model": {"name": "m", "experts": 64},
    "max_kl": 0.01,
    "batches": {
        "9-16": "priced:price=0.02",
        "2-4": "priced:price=0.005",
        "33-64": "oea:k0=4",
        "129-256": "oea:k0=4",
        "513-1024": "vanilla",
        "2049-4096": "priced",
    },
    "about": {"data": "here"},
}
SETTINGS = {
    "1": "vanilla",  # smaller than all that were measured
    "2-4": "priced:price=0.005",
    "5-8": "priced:price=0.005",  # the lower price of both neighbours
    "9-16": "priced:price=0.02",
    "17-32": "vanilla",  # two policies
    "65-128": "oea:k0=4",  # the same one
    "257-512": "vanilla",  # one neighbour is exact
    "1025-2048": "vanilla",
    "4097-8192": "vanilla",  # larger than all
}


def test_what_was_written_is_read_again():
    tuned = Tuned.of(GIVEN)
    told = tuned.told()
    assert Tuned.of(json.loads(json.dumps(told))) == tuned
    assert list(told["batches"])[:2] == ["2-4", "9-16"]  # readers find small batches first


@pytest.mark.parametrize(("batch", "spec"), SETTINGS.items())
def test_sizes_between_take_the_milder_neighbour_of_one_policy_and_others_are_exact(batch, spec):
    assert Tuned.of(GIVEN).setting(batch) == spec


def test_the_first_spec_is_one_that_remaps_and_every_one_that_may_act_is_among_them():
    specs = Tuned.of(GIVEN).specs
    assert specs[0] == "priced:price=0.005"
    assert set(SETTINGS.values()) <= set(specs)
    assert Tuned.of({**GIVEN, "batches": {"1": "vanilla"}}).specs == ["vanilla"]


def test_steps_are_counted_by_their_size():
    acting = ByBatch(Tuned.of(GIVEN))
    assert [acting.at(rows) for rows in (1, 3, 3, 8, 16)] == [
        SETTINGS[name] for name in ("1", "2-4", "2-4", "5-8", "9-16")
    ]
    state = {one["batch"]: one for one in acting.state()["batches"]}
    assert [state[name]["steps"] for name in ("1", "2-4", "5-8", "9-16", "33-64")] == [1, 2, 1, 1, 0]
    assert [state[name]["tuned"] for name in ("1", "2-4", "5-8")] == [False, True, False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({KEY: 2}, "of version 2, this lynx-moe reads 1"),
        ({"batches": {}}, "must map sizes to spec strings"),
        ({"batches": {"3-4": "priced"}}, "batch '3-4' is none of"),
        ({"batches": {"many": "priced"}}, "batch 'many' is none of"),
        ({"batches": {"0": "priced"}}, "batch '0' is none of"),
        ({"batches": {"1": "prized"}}, "did you mean 'priced'"),
        ({"batches": {"1": 3}}, "not by 3"),
        ({"batches": ["priced"]}, "must map sizes"),
        ({"max_kl": float("nan")}, "no number of nats"),
        ({"max_kl": True}, "no number of nats"),
        ({"model": "m"}, "must be JSON objects"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_what_is_wrong_is_named(change, says):
    with pytest.raises(ValueError, match=says):
        Tuned.of({**GIVEN, **change})


@pytest.mark.parametrize("given", [None, [], "text", 3, {}, {"batches": {}}])
def test_other_json_is_no_file_of_ours(given):
    with pytest.raises(ValueError, match=f"a JSON object with '{KEY}'"):
        Tuned.of(given)


def test_a_missing_part_is_named():
    with pytest.raises(ValueError, match="lacks 'max_kl'"):
        Tuned.of({key: value for key, value in GIVEN.items() if key != "max_kl"})
