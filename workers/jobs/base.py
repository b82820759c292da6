"""What a kind of job is. A new kind is one file beside this one and one line in `KINDS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from models.learning.preparation import Caveat
from storage.errors import InvalidParameters
from storage.jobs import Artifact, JobKind, Queue
from storage.records import DerivedVolume, StoredVolume
from workers.context import JobContext
from workers.preparing import cohort_bytes
from workers.schemas import pointer


class Parameters(BaseModel):
    """Base of all parameters: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Result(BaseModel):
    """Base of all results: finite JSON, or it is not published."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Warned(Result):
    """Something to know before a result is relied on: a stable code, and what it means here."""

    code: str
    text: str

    @classmethod
    def all(cls, caveats: Iterable[Caveat]) -> list[Self]:
        """Caveats as parts of a result."""
        return [cls(code=code, text=text) for code, text in caveats]


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class Outcome:
    """What a job made. `volume` and `store` (its path below the data root) are for ingests only; `derived` is
    a volume that the job made of its own one.
    """

    result: Result
    artifacts: tuple[Artifact, ...] = ()
    volume: StoredVolume | None = None
    store: str | None = None
    derived: DerivedVolume | None = None


class Kind(ABC, Generic[P]):
    """One kind of job: what it takes, what it gives, and how. Holds no state between jobs."""

    name: ClassVar[str]
    version: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    queue: ClassVar[Queue] = Queue.BATCH
    needs_volume: ClassVar[bool] = True
    internal: ClassVar[bool] = False
    parameters: type[P]
    result: ClassVar[type[Result]]

    @abstractmethod
    def memory_bytes(self, context: JobContext, parameters: P) -> int:
        """About how much memory the job will need, from what is known before it starts.

        Raises VolumeNotReady where that depends on a volume that is not there.
        """

    @abstractmethod
    def run(self, context: JobContext, parameters: P) -> Outcome:
        """Do the work. Raises a StorageError or a ModelError for what is not its own fault.

        Calls `context.report` often: what that raises ends the job.
        """

    def help(self, context: JobContext, parameters: P, until: float) -> bool:
        """Do a part of a job that another worker runs, until `time.monotonic()` is past `until`; whether
        there may be more to do. Raises as `run`. Most kinds know of no such part.
        """
        return False

    def parse(self, parameters: Mapping[str, Any]) -> P:
        """The parameters, checked. Raises InvalidParameters with a JSON pointer for each problem."""
        try:
            return self.parameters.model_validate(dict(parameters))
        except ValidationError as error:
            raise InvalidParameters(
                [(pointer(*problem["loc"]), problem["msg"]) for problem in error.errors()]
            ) from None

    def announcement(self) -> JobKind:
        """The kind as the catalogue and the web know it."""
        return JobKind(
            name=self.name,
            version=self.version,
            title=self.title,
            description=self.description,
            queue=self.queue,
            parameters_schema=self.parameters.model_json_schema(),
            result_schema=self.result.model_json_schema(mode="serialization"),
            needs_volume=self.needs_volume,
            internal=self.internal,
        )


class CohortKind(Kind[P]):
    """A kind whose jobs are about many volumes, none of them its own."""

    needs_volume = False

    def memory_bytes(self, context: JobContext, parameters: P) -> int:
        """What any cohort takes; `run` asks again when it knows what scans are brought to."""
        return cohort_bytes(context)


AnyKind = Kind[Any]
