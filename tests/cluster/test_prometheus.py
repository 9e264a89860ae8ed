from quire_cluster.prometheus import configuration


def test_pods_are_found_by_the_annotations_that_they_carry() -> None:
    [job] = configuration("/admin.kubeconfig")["scrape_configs"]
    [discovery] = job["kubernetes_sd_configs"]
    assert discovery == {"role": "pod", "kubeconfig_file": "/admin.kubeconfig"}
    wanted = {label for rule in job["relabel_configs"] for label in rule.get("source_labels", [])}
    for annotation in ("scrape", "port", "path"):
        assert f"__meta_kubernetes_pod_annotation_prometheus_io_{annotation}" in wanted
