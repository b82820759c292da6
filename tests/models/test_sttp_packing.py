"""Spectral models in safetensors: only degrees of freedom, and back to the bit."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.utils import parametrize

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.sttp.apply import sttp_, svdp_
from models.sttp.packing import KEY, from_bytes_, packed, to_bytes, unpack_
from models.sttp.parametrizations import originals, spectral_of


def _plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, groups=2),
        nn.BatchNorm2d(16),
        nn.Sequential(nn.ConvTranspose2d(16, 8, 3)),
        nn.Linear(5, 4),
    )


def _model(**settings: object) -> nn.Sequential:
    torch.manual_seed(0)
    return sttp_(_plain(), lambda _, name: name != "3", rank=4, **settings)


@pytest.mark.parametrize("settings", [{}, {"spectrum": "constant", "bound": 0.3}, {"execution": "dense"}])
def test_a_plain_and_a_spectral_model_take_a_file_to_the_bit(settings: dict[str, object]) -> None:
    model = _model(**settings).eval()
    content = to_bytes(model)
    x = torch.randn(2, 4, 5, 5)
    drawn = torch.random.get_rng_state()
    plain = _plain().eval()
    torch.random.set_rng_state(drawn)
    from_bytes_(plain, content)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [type(m).__name__ for m in model] == [type(m).__name__ for m in plain]
    assert torch.equal(model(x), plain(x))
    assert to_bytes(plain) == content
    other = _model(**settings)
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    from_bytes_(other, content)
    assert to_bytes(other) == content


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_frames_and_bound_and_comes_back_to_the_bit(dtype: torch.dtype) -> None:
    model = _model(bound=2.0)
    content = to_bytes(model, dtype)
    assert len(content) < len(to_bytes(model))
    plain = _plain()
    from_bytes_(plain, content)
    assert to_bytes(plain, dtype) == content
    for layer in plain[0], plain[2][0]:
        assert layer.weight.dtype == torch.float32
        spectral = spectral_of(layer)
        left, right = spectral.factors(*originals(layer))
        assert (right.mT @ right - torch.eye(right.shape[-1])).abs().max() <= 5e-6
        assert abs(torch.linalg.matrix_norm(left, 2).max() / 2 - 1) <= 2e-5


def test_a_file_has_the_degrees_of_freedom_and_hardly_more() -> None:
    shapes = [(16, 3), *[(128, n) for n in (16, 128, 128, 128)], *[(256, n) for n in (128, 256, 256, 256)]]
    model = nn.Sequential(*(nn.Conv2d(n, m, 3) for m, n in shapes), nn.BatchNorm2d(256), nn.Linear(256, 10))
    sttp_(model, rank=16, start="identity")
    layers = [layer for layer in model if spectral_of(layer) is not None]
    freedom = sum(spectral_of(layer).parameters_count for layer in layers)
    assert freedom == sum(tensor.numel() for layer in layers for tensor in originals(layer))
    tensors, _ = packed(model)
    learned = sum(t.numel() for name, t in tensors.items() if name.count(".weight.") and "bound" not in name)
    assert learned == freedom
    others = sum(layer.bias.numel() for layer in layers) + 4 * 256 + 1
    assert len(to_bytes(model)) <= 4 * freedom + 4 * others + 8 + 65_536
    assert len(to_bytes(model)) <= 1.2 * 4 * (freedom + others)


def test_a_file_is_read_in_a_fresh_process_without_the_model_that_wrote_it(tmp_path: Path) -> None:
    model = svdp_(nn.Sequential(nn.Conv3d(2, 6, 3), nn.Flatten(), nn.Linear(6, 2)), rank=2)
    (tmp_path / "model.safetensors").write_bytes(to_bytes(model))
    x = torch.linspace(-1, 1, 54).reshape(1, 2, 3, 3, 3)
    fresh = f"""
import torch
from pathlib import Path
from models.sttp.packing import from_bytes_
model = torch.nn.Sequential(torch.nn.Conv3d(2, 6, 3), torch.nn.Flatten(), torch.nn.Linear(6, 2))
from_bytes_(model, Path({str(tmp_path / "model.safetensors")!r}).read_bytes())
print(model(torch.linspace(-1, 1, 54).reshape(1, 2, 3, 3, 3)).tolist())
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", fresh], check=True, cwd=root, timeout=120, capture_output=True, text=True
    )
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), model(x), rtol=1e-6, atol=1e-7)


def test_what_does_not_fit_is_refused_and_the_model_left_as_it_was() -> None:
    tensors, metadata = packed(_model())
    plain = _plain()
    before = to_bytes(plain)

    def refused(
        match: str, changed: dict[str, object] | None = None, told: dict[str, str] | None = None
    ) -> None:
        with pytest.raises((InvalidShape, NonFinite, InvalidConfig), match=match):
            unpack_(plain, {**tensors, **(changed or {})}, metadata if told is None else told)

    refused("has no tomotrain.sttp", told={})
    refused("schema 2, this program reads 1", told={KEY: metadata[KEY].replace('"schema": 1', '"schema": 2')})
    refused("it is damaged", told={KEY: metadata[KEY].replace('"held"', '"hold"')})
    refused("the model has no layer 7", told={KEY: metadata[KEY].replace('"0": {', '"7": {')})
    refused("3 of the model is Linear", told={KEY: metadata[KEY].replace('"0": {', '"3": {')})
    refused("0.weight.inputs must be finite", {"0.weight.inputs": tensors["0.weight.inputs"] * torch.nan})
    refused("0.parametrizations.weight.original0 has shape", {"0.weight.outputs": torch.zeros(1)})
    refused("extra has shape", {"extra": torch.zeros(1)})
    refused("1.running_mean has shape", {"1.running_mean": torch.zeros(3)})
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert to_bytes(plain) == before
    other = sttp_(_plain(), lambda _, name: name != "3", rank=3)
    with pytest.raises(InvalidShape, match="rank of 0 is 3, not 4 as in the tensors"):
        unpack_(other, tensors, metadata)


def test_what_is_no_safetensors_file_is_refused() -> None:
    content = to_bytes(_model())
    for wrong in (b"", pickle.dumps({"weight": [1.0]}), content[:-1], content[:50]):
        with pytest.raises(InvalidShape, match="no safetensors file"):
            from_bytes_(_plain(), wrong)
    with pytest.raises(InvalidShape, match="of no spectral model"):
        from_bytes_(_plain(), save({"weight": torch.zeros(2)}))
