"""Pod templates: the engine's command line, security, and what makes a new revision."""

import msgspec
import pytest

from quire_operator.api import Spec, decode_spec
from quire_operator.fetch_environment import Network
from quire_operator.kinds import Manifest
from quire_operator.names import Key, claim_hash
from quire_operator.pods import (
    content_of,
    engine_template,
    fetch_arguments,
    fetch_template,
    model_content,
    mount_of,
    plan_template,
    revision_of,
    spec_digest,
)

CHAT = Key("ns", "chat")


def spec_of(uri: str = "hf://org/model", **more: object) -> Spec:
    model = {"uri": uri, **more.pop("model", {})}  # type: ignore[dict-item]
    return decode_spec({"model": model, **more})


def template(**more: object) -> Manifest:
    return engine_template(CHAT, spec_of(**more), "0a1b2c3d", "engine:v1", Network())  # type: ignore[arg-type]


def arguments(**more: object) -> list[str]:
    args: list[str] = template(**more)["spec"]["containers"][0]["args"]
    return args


@pytest.mark.parametrize(
    ("uri", "cache", "path"),
    [
        ("hf://org/model", {}, "/models/model"),
        ("hf://org/model/file.gguf", {}, "/models/model/file.gguf"),
        ("hf://org/model/sub/file.gguf", {"mode": "none"}, "/models/model/sub/file.gguf"),
        ("s3://bucket", {}, "/models/model"),
        ("s3://bucket/a/b/", {}, "/models/model"),
        ("gs://bucket/a/file.gguf", {}, "/models/model/file.gguf"),
        ("az://file.gguf", {}, "/models/model"),
        ("https://host/a/file.gguf", {}, "/models/model/file.gguf"),
        ("https://host/a/b.tar", {}, "/models/model"),
        ("pvc://claim/a/b", {}, "/models/a/b"),
        ("pvc://claim", {}, "/models"),
    ],
)
def test_what_is_served(uri: str, cache: dict[str, str], path: str) -> None:
    assert arguments(uri=uri, cache=cache)[:2] == ["serve", path]


def test_flags_follow_the_spec_and_extra_ones_come_last() -> None:
    engine = {
        "maxModelLen": 512,
        "gpuMemoryUtilization": 0.5,
        "prefixCaching": False,
        "extraArgs": ["--device", "cpu"],
    }
    args = arguments(engine=engine, rollout={"drainSeconds": 7})
    assert args[args.index("--max-model-len") + 1] == "512"
    assert args[args.index("--shutdown-timeout") + 1] == "7"
    assert args[args.index("--served-model-name") + 1] == "chat"
    assert "--no-enable-prefix-caching" in args
    assert "--dtype" not in args
    assert args[args.index("--device") + 1] == "cuda"
    assert args[-2:] == ["--device", "cpu"]


def test_without_gpus_the_engine_runs_on_the_cpu() -> None:
    args = arguments(resources={"gpus": 0})
    assert args[args.index("--device") + 1] == "cpu"
    assert "--quantization" not in args


def test_quantization_is_the_engines_flag() -> None:
    args = arguments(resources={"gpus": 0}, engine={"quantization": "int8"})
    assert args[args.index("--quantization") + 1] == "int8"


def test_gpus_are_limits_and_their_taint_is_tolerated() -> None:
    pod = template(resources={"gpus": 2, "gpuResource": "amd.com/gpu", "memory": "9Gi"})["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits == {"amd.com/gpu": "2", "memory": "9Gi"}
    assert pod["tolerations"][0]["key"] == "amd.com/gpu"


def test_prometheus_finds_the_engine_by_annotations_that_an_overlay_can_take_off() -> None:
    assert template()["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "8000",
        "prometheus.io/path": "/metrics",
    }
    overlay = {"metadata": {"annotations": {"prometheus.io/scrape": "false"}}}
    changed = template(podTemplate=overlay)["metadata"]["annotations"]
    assert changed["prometheus.io/scrape"] == "false"
    assert template()["metadata"]["annotations"]["prometheus.io/scrape"] == "true"


def test_a_fetch_is_not_scraped() -> None:
    fetch = fetch_template(CHAT, spec_of(), "stem", "engine:v1", Network(), repair=False)
    assert "annotations" not in fetch["metadata"]


def test_whoever_fetches_has_half_a_gibibyte() -> None:
    job = fetch_template(CHAT, spec_of(), "stem", "engine:v1", Network(), repair=False)
    pod = template(cache={"mode": "none"})
    for container in (*job["spec"]["containers"], *pod["spec"]["initContainers"]):
        assert container["resources"]["limits"] == {"memory": "512Mi"}


def test_pods_are_locked_down() -> None:
    pod = template()["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    container = pod["containers"][0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"][0]["readOnly"] is True


def test_grace_covers_the_sleep_the_drain_and_the_exit() -> None:
    pod = template(rollout={"drainSeconds": 30})["spec"]
    assert pod["terminationGracePeriodSeconds"] == 50
    assert pod["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 10}}


def test_a_fetch_goes_where_the_pod_will_go_and_is_no_endpoint() -> None:
    overlay = {"spec": {"nodeSelector": {"zone": "a"}, "hostAliases": [{"ip": "192.0.2.1"}]}}
    spec = spec_of(podTemplate=overlay)
    pod = fetch_template(
        CHAT, spec, "stem", "engine:v1", Network(hf_endpoint="http://hub"), repair=True
    )
    assert pod["spec"]["nodeSelector"] == {"zone": "a"}
    assert "hostAliases" not in pod["spec"]
    assert "serving.quire.dev/service" not in pod["metadata"]["labels"]
    container = pod["spec"]["containers"][0]
    assert container["env"] == [{"name": "HF_ENDPOINT", "value": "http://hub"}]
    assert container["args"] == [
        *["fetch", "hf://org/model", "/models", "--progress-port", "8001", "--repair"]
    ]


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def pod_affinity(**more: object) -> Manifest:
    found: Manifest = (template(**more)["spec"].get("affinity") or {}).get("podAffinity") or {}
    return found


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteOncePod"])
def test_pods_and_fetches_keep_to_the_node_of_a_volume_for_one_node(mode: str) -> None:
    spec = spec_of(cache={"accessMode": mode})
    fetch = fetch_template(CHAT, spec, "stem", "engine:v1", Network(), repair=False)
    for pod in (template(cache={"accessMode": mode}), fetch):
        [term] = pod["spec"]["affinity"]["podAffinity"][REQUIRED]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        selector = term["labelSelector"]["matchLabels"]
        assert selector == {"serving.quire.dev/cache": mount_of(spec).claim}
        assert selector.items() <= pod["metadata"]["labels"].items(), "the first one fits itself"


@pytest.mark.parametrize(
    "more",
    [
        {"cache": {"accessMode": "ReadWriteMany"}},
        {"cache": {"mode": "none"}},
        {"cache": {"mode": "existing", "existingClaim": "mine"}},
        {"uri": "pvc://mine/llama"},
    ],
)
def test_other_volumes_let_pods_spread(more: dict[str, object]) -> None:
    assert pod_affinity(**more) == {}


def test_the_users_affinity_is_merged_and_wins() -> None:
    zone = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}}
    merged = template(podTemplate={"spec": {"affinity": zone}})["spec"]["affinity"]
    assert merged == zone | {"podAffinity": pod_affinity()}
    near = {"podAffinity": {REQUIRED: [{"topologyKey": "zone"}]}}
    assert pod_affinity(podTemplate={"spec": {"affinity": near}}) == near["podAffinity"]
    assert pod_affinity(podTemplate={"spec": {"affinity": None}}) == {}


def test_an_empty_dir_is_filled_by_the_pod_itself() -> None:
    spec = spec_of(model={"credentialsSecret": "s"}, cache={"mode": "none", "size": "5Gi"})
    pod = engine_template(CHAT, spec, "0a1b2c3d", "engine:v1", Network())["spec"]
    assert pod["initContainers"][0]["args"][:3] == ["fetch", "hf://org/model", "/models"]
    assert "secretKeyRef" not in str(pod), "credentials never enter a pod that serves"
    assert pod["volumes"][0]["emptyDir"] == {"sizeLimit": "5Gi"}
    assert mount_of(spec).claim is None


SAME = [
    {"replicas": 5},
    {"scaling": {"mode": "builtin"}},
    {"cache": {"size": "99Gi"}},
    {"model": {"credentialsSecret": "other"}},
    {"rollout": {"progressDeadlineSeconds": 60}},
    {"resources": {"gpus": 1}},
]
OTHER = [
    {"uri": "hf://org/other"},
    {"model": {"revision": "v2"}},
    {"engine": {"extraArgs": ["--x"]}},
    {"resources": {"gpus": 0}},
    {"rollout": {"drainSeconds": 1}},
    {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}},
    {"cache": {"mode": "none"}},
]


@pytest.mark.parametrize("change", SAME)
def test_what_makes_no_new_revision(change: dict[str, object]) -> None:
    assert spec_digest(spec_of(**change)) == spec_digest(spec_of())  # type: ignore[arg-type]


@pytest.mark.parametrize("change", OTHER)
def test_what_makes_a_new_revision(change: dict[str, object]) -> None:
    assert spec_digest(spec_of(**change)) != spec_digest(spec_of())  # type: ignore[arg-type]


def test_the_limit_of_an_empty_dir_makes_a_new_revision() -> None:
    small, large = ({"mode": "none", "size": size} for size in ("5Gi", "9Gi"))
    assert spec_digest(spec_of(cache=small)) != spec_digest(spec_of(cache=large))


def test_a_revision_is_pinned_to_its_image() -> None:
    digest = spec_digest(spec_of())
    assert revision_of(digest, "engine:v1") != revision_of(digest, "engine:v2")


def test_digests_do_not_depend_on_what_defaults_are_written_out() -> None:
    full = decode_spec({"model": {"uri": "hf://org/model"}, "engine": {}, "resources": {"gpus": 1}})
    assert spec_digest(full) == spec_digest(spec_of())
    assert msgspec.to_builtins(full.engine) == {}


ADAPTERS = [
    {"name": "a", "uri": "hf://org/a"},
    {"name": "b", "uri": "pvc://tuned/b"},
    {"name": "c", "uri": "pvc://tuned/c/d"},
]
FOLDER_OF_A = f"adapters/{claim_hash('hf://org/a', None)}"


def lora_modules(args: list[str]) -> list[str]:
    return [args[at + 1] for at, word in enumerate(args) if word == "--lora-modules"]


def test_adapters_on_claims_are_served_as_they_lie() -> None:
    pod = template(model={"adapters": ADAPTERS})["spec"]
    [engine] = pod["containers"]
    assert lora_modules(engine["args"]) == [
        f"a=/models/{FOLDER_OF_A}/model",
        "b=/adapters/tuned/b",
        "c=/adapters/tuned/c/d",
    ]
    claim = {"persistentVolumeClaim": {"claimName": "tuned"}}
    assert [v for v in pod["volumes"] if v["name"].startswith("adapters")] == [
        {"name": "adapters-0", **claim}
    ]
    mount = {"name": "adapters-0", "mountPath": "/adapters/tuned", "readOnly": True}
    assert mount in engine["volumeMounts"]


def test_a_claim_with_model_and_adapter_is_mounted_once() -> None:
    adapters = [{"name": "a", "uri": "pvc://tuned/a"}, {"name": "b", "uri": "pvc://more/b"}]
    pod = template(uri="pvc://tuned/base", model={"adapters": adapters})["spec"]
    assert lora_modules(pod["containers"][0]["args"]) == ["a=/models/a", "b=/adapters/more/b"]
    claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]]
    assert sorted(claim for claim in claims if claim) == ["more", "tuned"]


def test_an_empty_dir_gets_adapters_too() -> None:
    pod = template(model={"adapters": ADAPTERS}, cache={"mode": "none"})["spec"]
    [init] = pod["initContainers"]
    assert init["args"][-2:] == ["--adapter", f"{FOLDER_OF_A}=hf://org/a"]
    assert lora_modules(pod["containers"][0]["args"])[0] == f"a=/models/{FOLDER_OF_A}/model"


def test_on_a_claim_of_the_users_adapters_lie_in_the_models_folder() -> None:
    cache = {"mode": "existing", "existingClaim": "disk"}
    spec = spec_of(model={"adapters": ADAPTERS}, cache=cache)
    args = template(model={"adapters": ADAPTERS}, cache=cache)["spec"]["containers"][0]["args"]
    root = mount_of(spec).root
    assert lora_modules(args)[0] == f"a={root}/{FOLDER_OF_A}/model"
    assert fetch_arguments(spec, root, repair=False)[2] == root


@pytest.mark.parametrize("mounted", [True, False])
def test_a_plan_finds_adapters_where_they_are(mounted: bool) -> None:
    spec = spec_of(model={"adapters": ADAPTERS})
    pod = plan_template(CHAT, spec, "engine:v1", Network(), None, mounted=mounted)["spec"]
    [plan] = pod["containers"]
    place = f"/models/{FOLDER_OF_A}/model" if mounted else "hf://org/a"
    assert lora_modules(plan["args"]) == [
        f"a={place}",
        "b=/adapters/tuned/b",
        "c=/adapters/tuned/c/d",
    ]
    mounts = {mount["mountPath"] for mount in plan["volumeMounts"]}
    assert mounts == {"/tmp", "/adapters/tuned", *(["/models"] if mounted else [])}
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in plan["volumeMounts"]}


def test_adapters_make_a_new_revision_and_none_make_the_same() -> None:
    assert spec_digest(spec_of(model={"adapters": []})) == spec_digest(spec_of())
    digests = {spec_digest(spec_of(model={"adapters": ADAPTERS[:count]})) for count in range(4)}
    assert len(digests) == 4


def test_contents_are_called_by_model_and_fetched_adapters() -> None:
    bare, adapted = spec_of(), spec_of(model={"adapters": ADAPTERS})
    assert content_of(bare) == model_content(bare) == model_content(adapted) != content_of(adapted)
    on_claims = spec_of(model={"adapters": ADAPTERS[1:]})
    assert content_of(on_claims) == content_of(bare), "nothing more is fetched"
    turned = spec_of(model={"adapters": ADAPTERS[::-1]})
    assert content_of(turned) == content_of(adapted)
