"""Files of compressed models: the same bytes, read in a fresh process, and refused when altered."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from models.compression.applying import compress_
from models.compression.files import KEY, from_bytes_, to_bytes
from models.compression.planning import plan
from models.compression.plans import CompressionPlan, digest_of
from models.errors import InvalidShape, NonFinite
from models.rsdtr.candidates import RingConfig
from models.rsdtr.layers import FactorisedLayer
from models.sttp.apply import SpectralConfig

MAKE = """
import torch
from torch import nn

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, groups=2, padding=1),
        nn.ConvTranspose2d(12, 16, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 24), nn.Linear(24, 2),
    ).eval()
"""
NAMES: dict[str, object] = {}
exec(MAKE, NAMES)
EXAMPLE = torch.linspace(-1, 1, 2 * 81).reshape(1, 2, 9, 9)
CONFIGS = [
    RingConfig(0.7),
    SpectralConfig("sttp", rank=4),
    SpectralConfig("svdp", rank=2, spectrum="constant"),
]


def network(seed: int = 0) -> nn.Sequential:
    made = NAMES["network"](seed)  # type: ignore[operator]
    assert isinstance(made, nn.Sequential)
    return made


def saved(config: RingConfig | SpectralConfig = CONFIGS[0]) -> tuple[nn.Sequential, CompressionPlan, bytes]:
    model = network()
    made = plan(model, EXAMPLE, config)
    assert len(made.forms) >= 2
    compress_(model, made)
    return model, made, to_bytes(model, made)


def document(content: bytes) -> dict[str, object]:
    size = int.from_bytes(content[:8], "little")
    read = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][KEY])
    assert isinstance(read, dict)
    return read


@pytest.mark.parametrize("config", CONFIGS)
def test_a_file_fills_a_freshly_made_dense_model(config: RingConfig | SpectralConfig) -> None:
    model, made, content = saved(config)
    fresh = network(seed=5)
    told = from_bytes_(fresh, content)
    assert told["source"] == made.digest == digest_of(network())
    with torch.no_grad():
        assert torch.equal(fresh(EXAMPLE), model(EXAMPLE))
    assert to_bytes(fresh, made) == content
    assert sum(own.numel() for own in fresh.parameters()) == made.parameters_after
    assert not any(module.training for module in fresh.modules())


def test_a_fresh_process_reads_it_and_writes_the_same_bytes(tmp_path: Path) -> None:
    model, _, content = saved()
    (tmp_path / "model.safetensors").write_bytes(to_bytes(model))
    torch.save(model(EXAMPLE).detach(), tmp_path / "answer.pt")
    program = MAKE + (
        "import sys\n"
        "from models.compression.files import from_bytes_, to_bytes\n"
        "model = network(9)\n"
        "content = open(sys.argv[1] + '/model.safetensors', 'rb').read()\n"
        "from_bytes_(model, content)\n"
        "x = torch.linspace(-1, 1, 2 * 81).reshape(1, 2, 9, 9)\n"
        "assert torch.equal(model(x), torch.load(sys.argv[1] + '/answer.pt'))\n"
        "assert to_bytes(model) == content\n"
        "print('same')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout == "same\n", run.stderr
    assert content == saved()[2]


def test_the_document_says_what_each_layer_is_made_of() -> None:
    model, made, content = saved()
    told = document(content)
    layers = told["layers"]
    assert isinstance(layers, dict)
    assert set(layers) == set(made.forms)
    for name, layer in layers.items():
        form = made.forms[name]
        assert (layer["method"], layer["ranks"]) == (form.method, list(form.ranks))
        assert (layer["eps"], layer["execution"]) == (0.7, "rebuild")
        assert 0 < layer["error"] <= 0.7
    assert layers["2"]["geometry"]["groups"] == 2
    tensors = load(content)
    assert sum(value.numel() for value in tensors.values()) == sum(
        value.numel() for value in model.state_dict().values()
    )


def test_pickles_and_altered_files_are_refused() -> None:
    model, _, content = saved()
    pickled = io.BytesIO()
    torch.save(model.state_dict(), pickled)
    fresh = network(seed=5)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    altered = bytearray(content)
    altered[-3] ^= 1
    version = save(load(content), {KEY: json.dumps({**document(content), "version": 2})})
    execution = {**document(content), "source": "0" * 64}
    refused = {
        "pickle": pickled.getvalue(),
        "no safetensors file": content[:-9],
        "no compressed model": save(load(content)),
        "was altered": bytes(altered),
        "version 2": version,
        "altered: its": save(load(content), {KEY: json.dumps(execution)}),
    }
    for words, given in refused.items():
        with pytest.raises(InvalidShape, match=words):
            from_bytes_(fresh, given)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    assert not any(isinstance(layer, FactorisedLayer) for layer in fresh)


def test_another_model_is_refused_and_stays_as_it_was() -> None:
    model, _, content = saved()
    other = network(seed=5)
    other[2] = nn.Conv2d(12, 12, 3, groups=2, padding=2)
    with pytest.raises(InvalidShape, match="2 of the model"):
        from_bytes_(other, content)
    longer = nn.Sequential(*network(seed=5), nn.Linear(2, 2))
    with pytest.raises(InvalidShape, match=r"8\.bias"):
        from_bytes_(longer, content)
    assert type(longer[2]) is nn.Conv2d
    with torch.no_grad():
        model[7].bias[0] = float("inf")
    fresh = network(seed=5)
    with pytest.raises(NonFinite, match=r"7\.bias"):
        from_bytes_(fresh, to_bytes(model))
    assert type(fresh[2]) is nn.Conv2d


def test_a_layer_used_twice_is_read_back_as_one_or_refused_by_name() -> None:
    def twice(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        layer = nn.Conv2d(8, 8, 3, padding=1)
        return nn.Sequential(nn.Conv2d(2, 8, 3), layer, nn.ReLU(), layer).eval()

    model, fresh = twice(0), twice(1)
    from_bytes_(fresh, to_bytes(compress_(model, plan(model, EXAMPLE, RingConfig(0.8)))))
    assert fresh[1] is fresh[3]
    assert isinstance(fresh[1], FactorisedLayer)
    assert torch.equal(fresh(EXAMPLE), model(EXAMPLE))
    spectral = twice(0)
    compress_(spectral, plan(spectral, EXAMPLE, SpectralConfig("svdp", rank=2)))
    with pytest.raises(InvalidShape, match="1 and 3 are one layer"):
        to_bytes(spectral)
