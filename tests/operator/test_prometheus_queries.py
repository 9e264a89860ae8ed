"""The queries yield a complete number or none: Prometheus' own tool evaluates them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from quire_operator.names import Key
from quire_operator.prometheus_queries import query, rules
from quire_operator.served_metrics import KV_CACHE, METRICS, QUEUE_DEPTH, TTFT_P95

CHAT = Key("default", "chat")
LABELS = 'namespace="default",serving_quire_dev_service="chat"'
PROMTOOL = shutil.which("promtool")

Series = dict[str, str]


def pod(name: str, *, up: str = "1x40", job: str = "pods", **metrics: str) -> Series:
    """The series of one pod: by metric, promtool's notation of values."""
    at = f'{LABELS},instance="{name}",job="{job}"'
    found = {f"up{{{at}}}": up}
    for metric, values in metrics.items():
        if metric == "ttft":
            found |= _ttft(at, *values.split("|"))
        else:
            found[f'{NAMES[metric]}{{{at},model_name="chat"}}'] = values
    return found


def _ttft(at: str, within_a_second: str, all_of_them: str) -> Series:
    name, labels = "vllm:time_to_first_token_seconds", f'{at},model_name="chat"'
    return {
        f'{name}_bucket{{{labels},le="1"}}': within_a_second,
        f'{name}_bucket{{{labels},le="+Inf"}}': all_of_them,
        f"{name}_count{{{labels}}}": all_of_them,
    }


NAMES = {"waiting": "vllm:num_requests_waiting", "usage": "vllm:kv_cache_usage_perc"}


def evaluate(tmp_path: Path, metric: str, *pods: Series) -> float | None:
    """The query's value at 10 min over the pods' series (one sample each 15 s)."""
    if PROMTOOL is None:
        pytest.skip("promtool (of Debian's prometheus) is not installed")
    series = [{"series": s, "values": v} for found in pods for s, v in found.items()]
    test = {
        "interval": "15s",
        "input_series": series,
        "promql_expr_test": [{"expr": query(CHAT, metric), "eval_time": "10m", "exp_samples": []}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"tests": [test]}))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    found = re.findall(r"got:.*?\{\} (\S+)\"?", done.stdout + done.stderr, re.DOTALL)
    assert len(found) == 1, done.stdout + done.stderr
    return float(found[0].strip('"'))


def test_the_queue_is_the_sum(tmp_path: Path) -> None:
    pods = (pod("a", waiting="3x40"), pod("b", waiting="4x40"))
    assert evaluate(tmp_path, QUEUE_DEPTH, *pods) == 7


def test_an_empty_queue_is_a_number(tmp_path: Path) -> None:
    assert evaluate(tmp_path, QUEUE_DEPTH, pod("a", waiting="0x40")) == 0


def test_the_cache_is_the_mean(tmp_path: Path) -> None:
    pods = (pod("a", usage="0.5x40"), pod("b", usage="0.25x40"))
    assert evaluate(tmp_path, KV_CACHE, *pods) == 0.375


@pytest.mark.parametrize("metric", METRICS)
def test_a_pod_that_cannot_be_scraped_leaves_no_number(tmp_path: Path, metric: str) -> None:
    whole = pod("a", waiting="9x40", usage="0.9x40", ttft="0+1x40|0+1x40")
    # Failed scrapes: up is 0, and all other series end.
    silent = pod("b", up="1x20 0x19", waiting="9x20 stale", usage="0.9x20 stale")
    assert evaluate(tmp_path, metric, whole) is not None
    assert evaluate(tmp_path, metric, whole, silent) is None


def test_a_pod_that_answers_garbage_leaves_no_number(tmp_path: Path) -> None:
    pods = (pod("a", waiting="9x40"), pod("b"))
    assert evaluate(tmp_path, QUEUE_DEPTH, *pods) is None


def test_no_pods_leave_no_number(tmp_path: Path) -> None:
    other = {s.replace('"chat"', '"other"'): v for s, v in pod("a", waiting="9x40").items()}
    assert evaluate(tmp_path, QUEUE_DEPTH, other) is None


def test_a_pod_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    gone = pod("b", up="1x20 stale", waiting="9x20 stale")
    assert evaluate(tmp_path, QUEUE_DEPTH, pod("a", waiting="2x40"), gone) == 2


def test_two_jobs_count_a_pod_once(tmp_path: Path) -> None:
    pods = (pod("a", waiting="3x40"), pod("a", job="operator", waiting="3x40"))
    assert evaluate(tmp_path, QUEUE_DEPTH, *pods) == 3


def test_ttft_is_a_quantile_over_all_pods(tmp_path: Path) -> None:
    fast = pod("a", waiting="0x40", ttft="0+10x40|0+10x40")
    assert evaluate(tmp_path, TTFT_P95, fast) == pytest.approx(0.95)


def test_without_traffic_ttft_is_zero(tmp_path: Path) -> None:
    quiet = pod("a", waiting="0x40", ttft="5x40|5x40")
    assert evaluate(tmp_path, TTFT_P95, quiet) == 0


def test_requests_that_wait_and_get_no_token_are_no_quiet(tmp_path: Path) -> None:
    stuck = pod("a", waiting="7x40", ttft="5x40|5x40")
    assert evaluate(tmp_path, TTFT_P95, stuck) is None


# ---- recording rules, for prometheus-adapter ----

SAMPLES = Path(__file__).resolve().parents[2] / "samples/prometheus"


def test_the_sample_has_the_operators_rules() -> None:
    (group,) = yaml.safe_load((SAMPLES / "rules.yaml").read_text())["groups"]
    assert {rule["record"]: rule["expr"] for rule in group["rules"]} == rules()


def test_the_adapters_sample_finds_all_rules() -> None:
    (rule,) = yaml.safe_load((SAMPLES / "adapter.yaml").read_text())["rules"]["external"]
    pattern = rule["seriesQuery"].partition('"')[2].rpartition('"')[0]
    assert all(re.fullmatch(pattern, metric) for metric in METRICS)


def test_rules_keep_services_apart(tmp_path: Path) -> None:
    """As Prometheus evaluates them: a silent pod of one service takes only that one's number."""
    if PROMTOOL is None:
        pytest.skip("promtool (of Debian's prometheus) is not installed")
    whole = pod("a", waiting="3x40")
    silent = pod("b", up="1x20 0x19", waiting="9x20 stale")
    other = {s.replace('"chat"', '"other"'): v for s, v in pod("c", waiting="5x40").items()}
    labels = '{namespace="default", service="other", serving_quire_dev_service="other"}'
    expected = {"labels": f"quire_queue_depth{labels}", "value": 5}
    test = {
        "interval": "15s",
        "input_series": [
            {"series": s, "values": v} for s, v in {**whole, **silent, **other}.items()
        ],
        "promql_expr_test": [
            {"expr": "quire_queue_depth", "eval_time": "10m", "exp_samples": [expected]}
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(SAMPLES / "rules.yaml")], "tests": [test]}))
    command = [PROMTOOL, "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
