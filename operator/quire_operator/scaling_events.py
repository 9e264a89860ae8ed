"""What the scaler tells as Events on the service: moves, and trouble that comes and goes.

Pure: the loop posts them. Ordinary life (starting, paused, asleep) is no trouble.
"""

from quire_operator.events import Note
from quire_operator.scaling_model import Decision, Reason, ScalingConfig
from quire_operator.scaling_report import sentence
from quire_operator.world import ScalingReport

REPEAT_SECONDS = 300.0  # trouble that flickers is told once in this time, each kind of it
_QUIET = frozenset({Reason.NO_READY_PODS, Reason.PAUSED})


def moved(config: ScalingConfig, decision: Decision) -> Note:
    """Replicas were moved."""
    before, after = decision.from_replicas, decision.to_replicas
    message = f"From {before} to {after} replicas: {sentence(config, decision)}"
    return Note("Normal", _word(before, after, decision.reason), message)


def _word(before: int, after: int, reason: Reason) -> str:
    if after == 0:
        return "ScaledToZero"
    if reason is Reason.ACTIVATED:
        return "Woken"
    return "ScaledUp" if after > before else "ScaledDown"


class Turns:
    """One service's turns of condition Scaling: a note when it turns False, and when it is over."""

    def __init__(self) -> None:
        self._told: str | None = None  # the trouble that a note was made of, while it lasts
        self._last: dict[str, float] = {}  # by reason: when it was told

    def note(self, report: ScalingReport, now: float) -> Note | None:
        """Of the condition as it is now; `now`: seconds on a steady clock."""
        if report.status == "False" and report.reason not in _QUIET:
            return self._trouble(report, now)
        if self._told is None or report.status != "True":
            return None
        over, self._told = self._told, None
        return Note("Normal", "ScalingRecovered", f"{over} is over: {report.message}")

    def _trouble(self, report: ScalingReport, now: float) -> Note | None:
        if self._told is not None:
            return None
        last = self._last.get(report.reason)
        if last is not None and now - last < REPEAT_SECONDS:
            return None
        self._told = report.reason
        self._last[report.reason] = now
        return Note("Warning", report.reason, report.message)
