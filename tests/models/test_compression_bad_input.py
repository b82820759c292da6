"""What cannot be compressed, planned or read: an error by name, and the model as it was."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils import prune

from models.compression.applying import compress_, compressed
from models.compression.budgets import BudgetConfig
from models.compression.files import KEY, _digest, from_bytes_, to_bytes
from models.compression.folding import fold_
from models.compression.planning import plan
from models.compression.plans import CompressionPlan, digest_of_tensors
from models.compression.recalibration import recalibrate_
from models.errors import InvalidConfig, InvalidShape, ModelError, NonFinite
from models.rsdtr.candidates import RingConfig
from models.rsdtr.layers import FactorisedLayer
from models.sttp.apply import SpectralConfig, spectral_, sttp_
from models.sttp.packing import KEY as SPECTRAL_KEY

EXAMPLE = torch.linspace(-1, 1, 2 * 81).reshape(1, 2, 9, 9)
RING, STTP = RingConfig(0.7), SpectralConfig("sttp", rank=4)
CONSTANT = SpectralConfig("svdp", rank=2, spectrum="constant")
CONFIGS = [RING, STTP, BudgetConfig(pcr=1.3)]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 12, 3, groups=2, padding=1),
        nn.Conv2d(12, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 24),
        nn.Linear(24, 2),
    ).eval()


def everything(model: nn.Module) -> tuple[object, ...]:
    """Modules, parameters and buffers by identity, in order; their classes, modes, hooks and values."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        [(name, id(module), type(module), module.training) for name, module in model.named_modules()],
        [len(module._forward_pre_hooks) for module in model.modules()],
        [(name, id(tensor), tensor.requires_grad) for name, tensor in tensors],
        list(model.state_dict()),
        digest_of_tensors(tensors),
    )


@contextmanager
def refused(model: nn.Module, error: type[ModelError], words: str) -> Iterator[None]:
    before = everything(model)
    with pytest.raises(error, match=words):
        yield
    assert everything(model) == before


def planned(model: nn.Module, example: Any, config: Any) -> CompressionPlan:
    return plan(model, example, config, lambda *_: True)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named(config: Any, value: float) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[1, 2, 0, 1] = value
    with refused(model, NonFinite, r"3\.weight of the model must be finite, but the one at \(1, 2, 0, 1\)"):
        planned(model, EXAMPLE, config)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_without_values_is_refused(config: Any) -> None:
    with pytest.raises(InvalidShape, match=r"0\.weight of the model is on the meta device"):
        planned(network().to("meta"), EXAMPLE.to("meta"), config)
    with pytest.raises(InvalidShape, match=r"2\.weight of the model has no values before"):
        planned(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.LazyLinear(3)), EXAMPLE, config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BudgetConfig(pcr=1000), r"pcr = 1000: must be at most \d+\.\d+, the most found"),
        (BudgetConfig(macs=10), r"macs = 10: must be at least [\d,]+, the least found"),
        (BudgetConfig(bytes=100), r"bytes = 100: must be at least [\d,]+, the least found"),
        (SpectralConfig("svdp", parameters=5), r"parameters = 5: must be at least \d+, which rank 1 has"),
    ],
)
def test_a_budget_that_cannot_be_met_says_what_can(config: Any, words: str) -> None:
    model = network()
    with refused(model, InvalidConfig, words):
        plan(model, EXAMPLE, config)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: BudgetConfig(pcr=math.nan), "pcr"),
        (lambda: BudgetConfig(pcr=0.5), "pcr"),
        (lambda: BudgetConfig(macs=math.nan), "macs"),  # type: ignore[arg-type]
        (lambda: BudgetConfig(bytes=math.inf), "bytes"),  # type: ignore[arg-type]
        (lambda: BudgetConfig(bytes=-1), "bytes"),
        (lambda: RingConfig(math.nan), "eps"),
        (lambda: SpectralConfig(rank=0), "rank"),
        (lambda: SpectralConfig(rank=2.5), "rank"),  # type: ignore[arg-type]
        (lambda: SpectralConfig(rho=math.nan), "rho"),
        (lambda: SpectralConfig(parameters=math.nan), "parameters"),  # type: ignore[arg-type]
    ],
)
def test_targets_that_are_none_are_refused(make: Callable[[], object], setting: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{setting} = "):
        make()


@pytest.mark.parametrize(
    ("example", "layer"),
    [
        (torch.zeros(1, 3, 9, 9), r"0 \("),
        (torch.zeros(1, 2, 4, 4), r"3 \("),
        (EXAMPLE.double(), r"0 \("),
        ("volume", r"str does not go through the model: 0"),
        ((EXAMPLE, EXAMPLE), "the model itself"),
    ],
)
def test_inputs_that_do_not_go_through_name_the_layer(example: Any, layer: str) -> None:
    model = network()
    with refused(model, InvalidShape, layer):
        plan(model, example, RING)
    compact = network()
    from_bytes_(compact, saved(RING))
    with refused(compact, InvalidShape, layer):
        recalibrate_(compact, [EXAMPLE, example])


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], InvalidShape, "no batch"),
        ([EXAMPLE, EXAMPLE[:0]], InvalidShape, r"batch 1, of shape \(0, 2, 9, 9\)"),
        ([EXAMPLE.to("meta")], InvalidShape, "batch 0"),
        ([EXAMPLE, EXAMPLE / 0], NonFinite, "batch 1 must be finite"),
        ([1e38 * torch.linspace(-1, 1, 486).reshape(3, 2, 9, 9)], NonFinite, "an average of 1"),
        ([EXAMPLE[0, 0]], InvalidShape, r"0 \(Conv2d\)"),
        ([{"x": EXAMPLE}], InvalidShape, r"dict does not go through the model: 0 \(Conv2d\)"),
    ],
)
def test_calibration_sets_that_are_none_leave_the_model(
    batches: list[Any], error: type[ModelError], words: str
) -> None:
    model = network()
    with refused(model, error, words):
        recalibrate_(model, batches)
    lazy = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(InvalidShape, match="1 has no averages"):
        recalibrate_(lazy, [EXAMPLE])


def test_layers_that_cannot_are_left_and_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3), nn.Linear(3, 3))
    told = {layer.name: layer.reason for layer in planned(empty, torch.zeros(2, 4), RING).layers}
    assert told["0"] == told["1"] == "unsupported: its weight has no values"
    complex_ = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64))
    made = planned(complex_, torch.zeros(2, 4, dtype=torch.complex64), RING)
    assert made.layers[0].reason == "unsupported: its weight has no real values"
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[3] = torch.jit.trace(model[3], torch.zeros(1, 12, 7, 7))
    made = planned(model, EXAMPLE, RING)
    assert "3" not in made.forms
    assert "is no linear layer or convolution" in {layer.name: layer.reason for layer in made.layers}["3"]
    pruned = network()
    prune.l1_unstructured(pruned[3], "weight", 0.5)
    assert "hooks" in {layer.name: layer.reason for layer in planned(pruned, EXAMPLE, RING).layers}["3"]


@pytest.mark.parametrize("config", [RING, STTP])
def test_odd_weights_are_compressed_to_the_map_of_their_kernels(config: Any) -> None:
    """In other memory formats, shared in memory, in half precision, frozen, and very large."""
    model = network()
    model[2].weight = nn.Parameter(torch.randn(6, 12, 3, 3).transpose(0, 1))
    model[3].weight = nn.Parameter(model[3].weight.detach().to(memory_format=torch.channels_last) * 1e20)
    model[6].requires_grad_(False)
    compact = compressed(model, planned(model, EXAMPLE, config))
    with torch.no_grad():
        wanted = fold_(copy.deepcopy(compact))(EXAMPLE)
        torch.testing.assert_close(compact(EXAMPLE), wanted, rtol=1e-4, atol=0)
        assert all(parameter.grad is None for parameter in compact.parameters())
        half = compressed(model.bfloat16(), planned(model, EXAMPLE.bfloat16(), config))
        assert half(EXAMPLE.bfloat16()).dtype == torch.bfloat16
    assert {p.requires_grad for p in compact[6].parameters()} == {False}
    assert {p.requires_grad for p in compact[2].parameters()} == {True}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"bound": -1.0}, InvalidConfig),
        ({"method": "tucker"}, InvalidConfig),
        ({"start": "x"}, InvalidConfig),
    ],
)
def test_spectral_settings_that_are_none_leave_the_model(settings: Any, error: type[ModelError]) -> None:
    model = network()
    with refused(model, error, next(iter(settings))):
        spectral_(model, SpectralConfig(rank=2, **settings))


def test_all_layers_are_parametrised_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    from models.sttp import parametrizations

    calls, given = [], parametrizations.imported

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("no memory")
        return given(*arguments)

    monkeypatch.setattr(parametrizations, "imported", failing)
    before = everything(model)
    with pytest.raises(RuntimeError, match="no memory"):
        sttp_(model, rank=2)
    assert len(calls) == 4
    assert everything(model) == before
    for wrong in (nn.Linear(3, 3, dtype=torch.complex64), nn.Linear(3, 3, device="meta"), nn.LazyLinear(3)):
        with pytest.raises(InvalidShape, match=r"the weight of 0 is"):
            sttp_(nn.Sequential(wrong), rank=2)


@cache
def saved(config: Any) -> bytes:
    model = network()
    made = planned(model, EXAMPLE, config)
    return to_bytes(compress_(model, made), made)


def forged(
    content: bytes, change: Callable[[dict[str, Any]], object], tensors: dict[str, Tensor] | None = None
) -> bytes:
    """The file with another document and other tensors, and the digest that it would have."""
    size = int.from_bytes(content[:8], "little")
    document = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][KEY])
    document.pop("digest")
    change(document)
    held = {**load(content), **(tensors or {})}
    return save(held, {KEY: json.dumps({**document, "digest": _digest(held, document)}, sort_keys=True)})


def layer_with(**changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["layers"]["2"].update(changed)


def spectral_with(**changed: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        told = json.loads(document["spectral"][SPECTRAL_KEY])
        told["layers"]["3"].update(changed)
        document["spectral"][SPECTRAL_KEY] = json.dumps(told)

    return change


RINGS: dict[str, Any] = {"method": "ring", "late": [], "modes": [[0], [1], [2], [3]]}
HOSTILE_LAYERS: list[dict[str, Any]] = [
    *(
        {"ranks": ranks}
        for ranks in ([-1], [0], [10**9], [10**30], [], None, [1.5], ["1"], [math.nan], [[1]])
    ),
    *({"late": late} for late in ([9], [-1], "0", None)),
    *({"method": method} for method in ("pickle", None, "sttp", "paper-ring")),
    *({"execution": name} for name in ("rm", None, [1])),
    *({"geometry": geometry} for geometry in (None, {})),
    {**RINGS, "ranks": [10**6] * 4},
    {**RINGS, "ranks": [10**18] * 4},
    {**RINGS, "ranks": [1] * 6, "modes": [[0], [1], [2], [3], [], []]},
    {**RINGS, "ranks": [1] * 4, "modes": [[0], [1], [2], [2]]},
]


def test_structures_that_say_something_else_are_refused_by_name() -> None:
    content, fresh = saved(RING), network(seed=5)
    for changed in HOSTILE_LAYERS:
        with refused(fresh, InvalidShape, r"\b2(\.core_in|\.core_out)?\b"):
            from_bytes_(fresh, forged(content, layer_with(**changed)))
    for name in ("", "1", "2.weight", "2.__class__", "9"):
        with refused(fresh, InvalidShape, "the model has no dense layer"):
            from_bytes_(fresh, forged(content, lambda d, n=name: d["layers"].update({n: d["layers"]["2"]})))
    for told in ({"2": 5}, [1], None, "x"):
        with refused(fresh, InvalidShape, "structure says nothing|has no tomotrain"):
            from_bytes_(fresh, forged(content, lambda d, t=told: d.update(layers=t)))


@pytest.mark.parametrize(
    "changed",
    [
        *({"rank": rank} for rank in (-1, 0, 10**9, 2.5, "4", None, True)),
        *({"method": method} for method in ("tucker", None)),
        *({"spectrum": spectrum} for spectrum in ("flat", [])),
        *({"groups": groups} for groups in (0, -1, 10**9, "1")),
        *({"shape": shape} for shape in ([10**9] * 4, None, [], "abc", [-1, 2], [16, 12, 3, 3.0])),
        *({name: 3} for name in ("transposed", "held", "factored", "flatten_kernel")),
    ],
    ids=str,
)
def test_spectral_settings_of_a_file_that_are_none_are_refused(changed: dict[str, Any]) -> None:
    fresh = network(seed=5)
    with refused(fresh, ModelError, f"3|{next(iter(changed))}"):
        from_bytes_(fresh, forged(saved(STTP), spectral_with(**changed)))


BAD_TENSORS: list[tuple[Any, str, Callable[[Tensor], Tensor], str]] = [
    (STTP, "7.bias", lambda x: x * math.nan, "7.bias must be finite"),
    (STTP, "7.bias", lambda x: torch.full_like(x, 1e300, dtype=torch.float64), "7.bias must be finite"),
    (STTP, "7.bias", lambda x: x.long(), "7.bias holds torch.int64"),
    (STTP, "7.bias", lambda x: x.bool(), "7.bias holds torch.bool"),
    (STTP, "7.bias", lambda x: x.to(torch.complex64), "7.bias holds torch.complex64"),
    (STTP, "7.bias", lambda x: x[:1], "7.bias has shape"),
    (STTP, "1.num_batches_tracked", lambda x: x.float(), "1.num_batches_tracked holds torch.float32"),
    (STTP, "3.weight.outputs", lambda x: x.int(), "3.weight.outputs holds torch.int32"),
    (STTP, "3.weight.bound", lambda x: -x, "3.weight.bound is -"),
    (STTP, "3.weight.singular_values", lambda x: 0 * x, "3.weight.singular_values are all 0"),
    (CONSTANT, "3.weight.signs", lambda x: 0 * x, "3.weight.signs must be 1 or -1"),
    (CONSTANT, "3.weight.signs", lambda x: x.float(), "3.weight.signs must be 1 or -1"),
]


@pytest.mark.parametrize(("config", "name", "change", "words"), BAD_TENSORS)
def test_tensors_of_another_kind_are_refused_by_name(
    config: Any, name: str, change: Callable[[Tensor], Tensor], words: str
) -> None:
    content, fresh = saved(config), network(seed=5)
    with refused(fresh, ModelError, words):
        from_bytes_(fresh, forged(content, lambda _: None, {name: change(load(content)[name])}))


def test_headers_that_are_meant_to_hurt_are_refused() -> None:
    def framed(header: bytes, body: bytes = b"") -> bytes:
        return len(header).to_bytes(8, "little") + header + body

    one = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    contents = [
        framed(b'{"__metadata__":{"' + KEY.encode() + b'":"' + b"[" * 100_000 + b'"}}'),
        framed(b"[" * 200_000),
        framed(b'{"a":' + one + b',"a":' + one + b"}", b"\0" * 4),
        framed(b'{"a":' + one + b',"b":' + one + b"}", b"\0" * 4),
        framed(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', b"\0" * 4),
        framed(b'{"__metadata__":{"' + KEY.encode() + b'":"{\\"version\\":' + b"9" * 5000 + b'}"}}'),
        (2**63).to_bytes(8, "little") + b"{}",
        b"",
    ]
    fresh = network(seed=5)
    for content in contents:
        with refused(fresh, InvalidShape, "safetensors|no compressed model|tomotrain"):
            from_bytes_(fresh, content)


def test_plans_that_say_something_else_are_refused_and_carried_out_on_nothing() -> None:
    model = network()
    document = json.loads(planned(model, EXAMPLE, RING).to_json())
    place = next(k for k, layer in enumerate(document["layers"]) if layer["name"] == "2")
    for changed in (
        *({"ranks": ranks} for ranks in ([], [0], [-2], [10**9], [1.5], ["a"], [True])),
        *({"late": late} for late in ([9], ["x"])),
        *({"eps": eps} for eps in (None, math.nan, -1, "x")),
        *({"execution": name} for name in ("x", None)),
        *({"method": method} for method in ("svdp", "sttp", "ring", "x")),
        {"method": "ring", "ranks": [7, 7, 7, 7], "modes": [[0], [1], [2], [3]]},
        {"method": "ring", "ranks": [1, 5, 31, 1], "modes": [[0], [1], [2], [3]]},
        {"surplus": 1},
    ):
        altered = copy.deepcopy(document)
        altered["layers"][place]["form"].update(changed)
        with refused(model, ModelError, "must be|ranks|matrices|factorisation|axis"):
            compress_(model, CompressionPlan.from_json(json.dumps(altered)))
    for name in ("nothing", "1", 5, None):
        altered = copy.deepcopy(document)
        altered["layers"][place]["name"] = name
        with refused(model, ModelError, "nothing|BatchNorm2d|text"):
            compress_(model, CompressionPlan.from_json(json.dumps(altered)))
    for text in ("[" * 100_000, json.dumps({**document, "digest": None})):
        with pytest.raises(InvalidConfig, match="JSON of a plan"):
            CompressionPlan.from_json(text)
    twice = {**document, "layers": [*document["layers"], document["layers"][place]]}
    with pytest.raises(InvalidConfig, match="one entry"):
        CompressionPlan.from_json(json.dumps(twice))
    assert not any(isinstance(layer, FactorisedLayer) for layer in model)
