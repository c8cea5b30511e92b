"""The calibration file: what is written comes back, what is wrong is named, and every layer gets its own tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lynx_moe.calibration.artifact import Artifact, Provenance, attach, layer_number, load, save
from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec

E = 6
ABOUT = Provenance(model="tiny", data="random", num_tokens=99, seed=3, versions={"torch": "2.13.0"})
CPU = torch.device("cpu")


def tensors(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    loss = torch.rand(E, E, generator=rng)
    loss[0, 1] = torch.inf
    return {"gate_norm": torch.rand(E, generator=rng), "similarity": torch.rand(E, E, generator=rng), "fold_loss": loss}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "tiny.safetensors"
    save(Artifact(layers={1: tensors(1), 12: tensors(2)}, provenance=ABOUT), path)
    return path


def test_what_is_saved_is_loaded(path: Path) -> None:
    artifact = load(path)
    assert artifact.provenance == ABOUT
    assert sorted(artifact.layers) == [1, 12]
    for number, seed in ((1, 1), (12, 2)):
        for name, tensor in tensors(seed).items():
            assert torch.equal(artifact.layers[number][name], tensor)


def test_every_layer_gets_its_own_tensors(path: Path) -> None:
    policy = make_policy(f"reap:num_keep=3,data={path}")
    layers = attach(policy, ["model.layers.12.mlp.experts", "model.layers.1.mlp.experts"], CPU)
    assert layers == [policy, policy]  # the spec names the file, not the layer
    logits, spec = torch.randn(16, E), RouterSpec(num_experts=E, top_k=2)
    for attached, seed in zip(layers, (2, 1), strict=True):
        kept = set(tensors(seed)["gate_norm"].topk(3).indices.tolist())
        assert set(attached.route(logits, spec).ids.flatten().tolist()) == kept


def test_a_policy_without_calibration_reads_no_file() -> None:
    policy = make_policy("lynx")
    assert attach(policy, ["a", "b"], CPU) == [policy, policy]


def test_layer_numbers_come_from_the_names() -> None:
    names = ("model.layers.3.mlp.experts", "language_model.model.layers.10.block_sparse_moe", "layers.0", "7")
    assert [layer_number(name) for name in names] == [3, 10, 0, 7]
    with pytest.raises(ValueError, match="'mlp2' has no number"):
        layer_number("mlp2")


@pytest.mark.parametrize(
    ("policy", "layer", "says"),
    [
        ("reap:num_keep=3", "layers.2", r"no calibration of layer 2; the data have layers 1, 12"),
        ("exfold:num_keep=3", "layers.1", r"needs output_norm, fold_scale of layer 1; the data have fold_loss, gate_"),
        ("sere:num_primary=1,rho=0.5,norm=fold", "layers.1", r"needs fold_scale of layer 1"),
    ],
)
def test_what_a_policy_misses_is_named(path: Path, policy: str, layer: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        attach(make_policy(f"{policy},data={path}"), [layer], CPU)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"norms": torch.ones(E)}, "norms of layer 0 is unknown; allowed: gate_norm"),
        ({"similarity": torch.ones(E)}, "expected E numbers, or E x E"),
        ({"similarity": torch.ones(E, 2)}, "expected E numbers, or E x E"),
        ({"gate_norm": torch.ones(E, dtype=torch.int64)}, "expected E numbers"),
        ({"gate_norm": torch.full((E,), torch.nan)}, "not finite"),
        ({"fold_scale": torch.full((E, E), torch.inf)}, "not finite"),
    ],
)
def test_wrong_tensors_are_refused_in_both_directions(tmp_path: Path, layer: dict, says: str) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=says):
        save(Artifact(layers={0: layer}, provenance=ABOUT), path)
    about = {"version": 1, "model": "m", "data": "d", "num_tokens": 1, "seed": 0}
    save_file({f"layers.0.{name}": t for name, t in layer.items()}, path, metadata={"lynx_moe": json.dumps(about)})
    with pytest.raises(ValueError, match=says):
        load(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    with pytest.raises(ValueError, match=r"b\.safetensors does not exist"):
        load(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"b\.safetensors is not a readable calibration"):
        load(path)
    for metadata in (None, {"lynx_moe": json.dumps({"version": 2})}):
        save_file({"layers.0.gate_norm": torch.ones(E)}, path, metadata=metadata)
        with pytest.raises(ValueError, match="not a calibration of version 1"):
            load(path)
    save_file({"layers.0.gate_norm": torch.ones(E)}, path, metadata={"lynx_moe": json.dumps({"version": 1})})
    with pytest.raises(ValueError, match="not a readable calibration"):
        load(path)
