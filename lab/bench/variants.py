"""The variants that are compared, and the paths that are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lab.supervise.plan import TELEMETRY

NO_TRACES = {"OTEL_SDK_DISABLED": "true"}
NO_LOGS = {"LOG_LEVEL": "CRITICAL"}
SAMPLE_A_TENTH = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}


@dataclass(frozen=True)
class Variant:
    """One way to run the dice-roller and the die-service.

    Attributes:
        command: the arguments of Python; ``{}`` stands for the package of the service.
        variables: added to the environment.
        collector: whether spans go to a collector over OTLP/HTTP instead of to a file.
    """

    name: str
    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    collector: bool = False


SERVICE = ("-m", "{}")
REFERENCE = ("-m", "bench.reference", "{}")
WITHOUT_METRICS = ("-m", "bench.service", "{}")
BARE = Variant("no telemetry", REFERENCE)
FILES = {which: Variant(which, SERVICE, {"TELEMETRY": which}) for which in TELEMETRY}


def path_variants(telemetry: Sequence[str] = TELEMETRY) -> list[Variant]:
    """The variants of ``paths``."""
    over_otlp = [Variant(f"{which}, over OTLP", SERVICE, {"TELEMETRY": which}, collector=True) for which in telemetry]
    return [BARE, *(FILES[which] for which in telemetry), *over_otlp]


def signal_variants(telemetry: Sequence[str] = TELEMETRY) -> list[Variant]:
    """The variants of ``signals``."""
    return [BARE] + [
        Variant(f"{which}: {signal}", command, {"TELEMETRY": which} | variables)
        for which in telemetry
        for signal, command, variables in (
            ("metrics alone", SERVICE, NO_TRACES | NO_LOGS),
            ("logs alone", WITHOUT_METRICS, NO_TRACES),
            ("traces alone", WITHOUT_METRICS, NO_LOGS),
            ("all", SERVICE, {}),
            ("all, a tenth of the traces", SERVICE, SAMPLE_A_TENTH),
        )
    ]


ROLL = "/roll?die=fair"
PATHS = (
    ROLL,
    *(f"/roll-async?die=fair&times={times}" for times in (10, 100)),
    "/dice?identifier=fair",  # of the die-service
)
BATCH_CLIENTS = 16  # clients that roll batches at the same time
