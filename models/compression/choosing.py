"""Which form each open layer takes: by an error, within a budget, or by spectral ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from torch import nn

from models.compression.budgets import BudgetConfig, Limit, Prices, within
from models.compression.curvature import Curvature
from models.compression.forms import Form
from models.compression.ladders import CommonError, CommonSlope, Ladder
from models.compression.search import Choice, LayerSearch
from models.compression.tracing import Calls
from models.errors import InvalidConfig
from models.rsdtr.candidates import RingConfig
from models.rsdtr.metric import KernelMetric
from models.sttp.apply import SpectralConfig
from models.sttp.weights import weight_shape

Forms = dict[str, Form]


@dataclass(frozen=True)
class OpenLayers:
    """The layers that may change, by name, with their calls; `curvature` gives errors their metric.

    `report` is called before each search. `known` keeps searches: a further plan of the same layers, in the
    same metric, has less to do.
    """

    layers: Mapping[str, nn.Module]
    calls: Mapping[str, Calls]
    curvature: Curvature | None
    report: Callable[[int], None]
    known: dict[str, LayerSearch]

    def searches(self, config: RingConfig) -> list[LayerSearch]:
        """One for each layer. Raises InvalidConfig for the paper's search with a curvature."""
        if self.curvature is not None and config.reference:
            raise InvalidConfig("reference", True, "False with a curvature: the paper's search knows none")
        done = count()
        for name, layer in self.layers.items():
            if name not in self.known:
                self.known[name] = _ReportedSearch(
                    layer,
                    self.calls[name],
                    config,
                    name,
                    None if self.curvature is None else self.curvature.metric(name),
                    lambda: self.report(next(done)),
                )
        return [self.known[name] for name in self.layers]


@dataclass(frozen=True)
class Whole:
    """Of the whole model: parameters, bytes of its tensors, and the MACs of layers that may not change."""

    parameters: int
    bytes: int
    other_macs: int


def ring_forms(of: OpenLayers, config: RingConfig) -> Forms:
    """The smallest within `config.eps`: of each layer, or in a curvature's metric of all together."""
    searches = of.searches(config)
    if of.curvature is None:
        return _forms(searches, [search.at(config.eps) for search in searches])
    ladder = CommonSlope(searches, lambda _, choice: choice.storage)
    return _forms(searches, ladder.within(config.eps**2 * sum(search.energy for search in searches)))


def budgeted_forms(of: OpenLayers, config: BudgetConfig, whole: Whole) -> Forms:
    """Those within the targets. Raises InvalidConfig, with what can be met, for one that cannot."""
    searches = of.searches(config.ring())
    limits = _limits(searches, config, whole)

    def ladder(prices: Prices) -> Ladder:
        return CommonError(searches) if of.curvature is None else CommonSlope(searches, prices)

    return _forms(searches, within(limits, ladder))


def spectral_forms(of: OpenLayers, config: SpectralConfig) -> Forms:
    """Spectral weights of the ranks that the config gives these layers; not where dense is no larger.

    Raises InvalidConfig for a start from anew, and with a curvature.
    """
    if config.start != "weight":
        raise InvalidConfig("start", config.start, "'weight': a trained model is compressed by its weights")
    if of.curvature is not None:
        raise InvalidConfig("curvature", "given", "None for spectral weights: their frames are orthogonal")
    shapes = [weight_shape(layer) for layer in of.layers.values()]
    forms = {}
    for name, shape, rank in zip(of.layers, shapes, config.ranks(shapes) if shapes else [], strict=True):
        layout = shape.layout(
            config.method, rank, constant=config.spectrum == "constant", flatten_kernel=config.flatten_kernel
        )
        if layout.parameters < shape.outputs * shape.columns:
            forms[name] = Form(
                config.method,
                (rank,),
                execution=config.execution,
                spectrum=config.spectrum,
                bound=config.bound,
                flatten_kernel=config.flatten_kernel,
            )
    return forms


class _ReportedSearch(LayerSearch):
    """A search that calls `before` each time that it is asked for an error anew."""

    def __init__(
        self,
        layer: nn.Module,
        calls: Calls,
        config: RingConfig,
        name: str,
        metric: KernelMetric | None,
        before: Callable[[], None],
    ) -> None:
        super().__init__(layer, calls, config, name, metric)
        self._before = before

    def at(self, eps: float) -> Choice:
        """See `LayerSearch`."""
        if eps not in self._found:
            self._before()
        return super().at(eps)


def _limits(searches: Sequence[LayerSearch], config: BudgetConfig, whole: Whole) -> list[Limit]:
    """What the open layers may weigh together: each target less what the rest of the model takes of it."""
    limits = []
    if (pcr := config.pcr) is not None:
        rest = whole.parameters - sum(search.dense.storage for search in searches)
        limits.append(
            Limit(
                int(whole.parameters / pcr) - rest,
                lambda _, choice: choice.storage,
                lambda least: InvalidConfig(
                    "pcr", pcr, f"at most {whole.parameters / max(1, least + rest):.4f}, the most found"
                ),
            )
        )
    if (macs := config.macs) is not None:
        limits.append(
            Limit(
                macs - whole.other_macs,
                lambda _, choice: choice.macs,
                lambda least: InvalidConfig(
                    "macs", macs, f"at least {least + whole.other_macs:,}, the least found"
                ),
            )
        )
    if (size := config.bytes) is not None:
        kept = whole.bytes - sum(search.dense.storage * search.item_size for search in searches)
        limits.append(
            Limit(
                size - kept,
                lambda search, choice: choice.storage * search.item_size,
                lambda least: InvalidConfig("bytes", size, f"at least {least + kept:,}, the least found"),
            )
        )
    return limits


def _forms(searches: Sequence[LayerSearch], choices: Sequence[Choice]) -> Forms:
    """Of the layers that change."""
    return {
        search.name: choice.form
        for search, choice in zip(searches, choices, strict=True)
        if choice.form is not None
    }
