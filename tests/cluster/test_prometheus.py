from pathlib import Path

from quire_cluster.prometheus import configuration, targets

POD = {
    "metadata": {
        "name": "chat-0",
        "namespace": "team",
        "labels": {"serving.quire.dev/service": "chat"},
        "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"},
    },
    "status": {"podIP": "203.0.113.5", "phase": "Running"},
}


def test_a_pod_is_handed_over_as_kubernetes_discovery_would() -> None:
    [target] = targets([POD])
    assert target["labels"]["__meta_kubernetes_pod_annotation_prometheus_io_port"] == "8000"
    assert target["labels"]["__meta_kubernetes_pod_ip"] == "203.0.113.5"
    assert target["labels"]["__meta_kubernetes_namespace"] == "team"
    assert target["labels"]["__meta_kubernetes_pod_label_serving_quire_dev_service"] == "chat"


def test_pods_without_an_address_and_ended_ones_are_no_targets() -> None:
    young = POD | {"status": {"phase": "Pending"}}
    ended = POD | {"status": {"podIP": "203.0.113.5", "phase": "Succeeded"}}
    assert targets([young, ended]) == []


def test_every_label_that_the_relabelling_wants_is_given() -> None:
    [job] = configuration(Path("/targets.json"))["scrape_configs"]
    [target] = targets([POD | {"metadata": POD["metadata"] | {"annotations": {
        f"prometheus.io/{name}": "x" for name in ("scrape", "port", "path")
    }}}])  # fmt: skip
    for rule in job["relabel_configs"]:
        assert set(rule.get("source_labels", ())) <= set(target["labels"])
