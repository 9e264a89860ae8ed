"""How reasons of the memory plan are found: rules of `reasons.py`. Pure."""

from __future__ import annotations

from quire_operator.case import Case, Rule


def does_not_fit(case: Case) -> str | None:
    return case.plan.fit.refusal if case.plans else None


def plan_failed(known: frozenset[str]) -> Rule:
    """The rule of plans that ended for a reason not in `known`: a flag that the engine has not,
    say."""

    def found(case: Case) -> str | None:
        failure = case.plan.fit.failure if case.plans else None
        if failure is None or failure[0] in known:
            return None
        reason, message = failure
        return message if reason == "PlanFailed" else f"{reason}: {message}"

    return found


def planning(case: Case) -> str | None:
    return case.plan.fit.asking_words if case.plans else None
