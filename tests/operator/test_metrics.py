"""The operator's own metrics: what is counted, how it is served, that nothing stays behind."""

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from quire_operator import metrics as metrics_module
from quire_operator.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_reconciles_count_by_result_and_error() -> None:
    metrics = Metrics()
    metrics.reconciled(0.004)
    metrics.reconciled(0.2, "Conflict")
    metrics.queue_length(7)
    metrics.leading(True)
    assert sample(metrics, "quire_reconcile_total", result="ok") == 1
    assert sample(metrics, "quire_reconcile_total", result="error") == 1
    assert sample(metrics, "quire_reconcile_errors_total", error="Conflict") == 1
    assert sample(metrics, "quire_reconcile_duration_seconds_count") == 2
    assert sample(metrics, "quire_queue_length") == 7
    assert sample(metrics, "quire_leader") == 1


def test_downloads_count_by_result_with_their_bytes() -> None:
    metrics = Metrics()
    metrics.downloaded("ok", 1_000)
    metrics.downloaded("SourceNotFound")
    assert sample(metrics, "quire_model_downloads_total", result="ok") == 1
    assert sample(metrics, "quire_model_downloads_total", result="SourceNotFound") == 1
    assert sample(metrics, "quire_model_download_bytes_total") == 1_000


def test_a_forgotten_service_leaves_no_series_and_its_neighbour_stays() -> None:
    metrics = Metrics(clock=lambda: 100.0)
    for service in ("chat", "code"):
        metrics.replicas("team", service, desired=2, ready=1)
        metrics.decided("team", service, "up", "QueueDepth", dry_run=False)
        metrics.decided("team", service, "down", "LoadFitsFewer", dry_run=True)
        metrics.complete("team", service)
    metrics.forget("team", "chat")
    metrics.forget("team", "never-seen")
    text = metrics.text().decode()
    assert 'service="chat"' not in text
    assert sample(metrics, "quire_ready_replicas", namespace="team", service="code") == 1
    assert sample(metrics, "quire_scrape_age_seconds", namespace="team", service="code") == 0


async def test_they_are_served_in_prometheus_text_format() -> None:
    metrics = Metrics()
    metrics.queue_length(3)
    runner = await metrics_module.serve(metrics, port=0, host="127.0.0.1")
    port = runner.addresses[0][1]
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain")
        families = list(text_string_to_metric_families(await response.text()))
    await runner.cleanup()
    values = {s.name: s.value for family in families for s in family.samples}
    assert values["quire_queue_length"] == 3
    assert all(family.documentation for family in families)
