"""Which alerts must fire, when, and until when."""

from __future__ import annotations

from lab.chaos.expectations import Expectation
from lab.chaos.observations import Observations
from lab.client import Missing, NotRunning


def raised(name: str, after: float = 20.0) -> Expectation:
    """The alert becomes pending or fires. Not checked when the fault is shorter than ``after`` seconds."""

    async def check(observed: Observations) -> str:
        observed.lab.engine("prometheus")
        seen = observed.detections.get(f"alert {name} pending")
        if seen is not None:
            return f"after {seen:.1f} s"
        if observed.fault < after:
            raise NotRunning(f"it takes a fault of {after:g} s")
        if name not in await observed.lab.fetch_alerts():
            raise NotRunning("Prometheus has no such rule")
        if (state := observed.alerts_before.get(name, "inactive")) != "inactive":
            raise NotRunning(f"it was {state} before")
        raise Missing("it stayed inactive")

    return Expectation(f"the alert {name} is pending or fires", check)


def first(*names: str, within: float, during: bool) -> Expectation:
    """One of these alerts is the first that fires.

    Args:
        names: the alerts; without names, no alert may fire.
        within: seconds after the injection.
        during: whether the alert fires only if the fault lasts that long.
    """

    async def check(observed: Observations) -> str:
        observed.lab.engine("prometheus")
        if not observed.alerts_before:
            raise NotRunning("Prometheus has no rules")
        fired = {name: one.since - observed.injected for name, one in observed.firing.items()}
        said = ", ".join(f"{name} after {seconds:.0f} s" for name, seconds in fired.items())
        if not names:
            if fired:
                raise Missing(said)
            return "none fired"
        if not fired and during and observed.fault < within:
            raise NotRunning(f"it takes a fault of {within:g} s")
        if all(observed.alerts_before.get(name, "inactive") != "inactive" for name in names):
            raise NotRunning("it was not inactive before")
        first = next(iter(fired), None)
        if first not in names or fired[first] > within:
            raise Missing(said or "none fired")
        return said

    what = f"{' or '.join(names)} is the first alert that fires, within {within:g} s" if names else "no alert fires"
    return Expectation(what, check)


def fall_silent(within: float) -> Expectation:
    """Every alert that has fired is silent again at most ``within`` seconds after the end of the fault."""

    async def check(observed: Observations) -> str:
        observed.lab.engine("prometheus")
        if not observed.firing:
            raise NotRunning("no alert has fired")
        silent = {n: None if one.until is None else one.until - observed.restored for n, one in observed.firing.items()}
        found = ", ".join(
            f"{n} {'still fires' if s is None else f'after {max(0.0, s):.0f} s'}" for n, s in silent.items()
        )
        if observed.watched < within and not observed.silent:
            raise NotRunning(f"that takes up to {within:g} s; it was watched for {observed.watched:.0f}")
        if any(seconds is None or seconds > within for seconds in silent.values()):
            raise Missing(found)
        return found

    return Expectation(f"alerts fall silent within {within:g} s of the end of the fault", check)
