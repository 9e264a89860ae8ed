"""A service's spec as the scaler's config, with what follows from the loop's own interval. Pure."""

from datetime import datetime

from quire_operator.api import Schedule, Spec
from quire_operator.scaling_model import ScalingConfig
from quire_operator.schedules import Minimum, minimum

TTFT_WINDOW_ROUNDS = 12  # 60 s at the default interval: a p95 of fewer requests is an anecdote
GAP_ROUNDS = 3
MAX_DOWN_STEP_SECONDS = 60.0


def config_of(spec: Spec, least: Minimum, interval_seconds: float) -> ScalingConfig:
    """`least`: the minReplicas in force; interval_seconds: from one round to the next."""
    scaling, targets = spec.scaling, spec.scaling.targets
    return ScalingConfig(
        min_replicas=least.replicas,
        max_replicas=scaling.max_replicas,
        queue_depth=targets.queue_depth,
        ttft_seconds=targets.ttft_seconds,
        kv_cache_utilization=targets.kv_cache_utilization,
        slots=spec.engine.max_num_seqs,
        max_up_step=scaling.scale_up.max_step,
        max_down_step=scaling.scale_down.max_step or 1,
        up_window_seconds=scaling.up_seconds,
        down_window_seconds=scaling.down_seconds,
        down_step_seconds=min(MAX_DOWN_STEP_SECONDS, scaling.down_seconds),
        settle_seconds=TTFT_WINDOW_ROUNDS * interval_seconds,
        gap_seconds=GAP_ROUNDS * interval_seconds,
        idle_seconds_to_zero=scaling.idle_seconds_to_zero,
        schedule=None if least.schedule is None else _words(least.schedule),
        schedule_errors=least.errors,
        dry_run=scaling.dry_run,
    )


def _words(schedule: Schedule) -> str:
    return f"{schedule.cron!r} ({schedule.time_zone})"


class MinimumNow:
    """One service's minReplicas in force. Cron is asked again only when the spec changed or the
    next entry fires: a look costs up to a millisecond an entry, and services are many."""

    def __init__(self) -> None:
        self._of: Spec | None = None
        self._at: datetime | None = None
        self._found = Minimum(1)

    def __call__(self, spec: Spec, now: datetime) -> Minimum:
        until = self._found.until
        clock_went_back = self._at is not None and now < self._at
        if spec is not self._of or clock_went_back or (until is not None and now >= until):
            self._found = minimum(spec.scaling.schedules, spec.scaling.min_replicas, now)
            self._of, self._at = spec, now
        return self._found
