"""Every version that the test bed pins, in one place.

The hashes behind these versions lie in the go.mod and go.sum of `tests/cluster/go/<name>`; a test
holds the two equal.
"""

from dataclasses import dataclass, field

KUBERNETES = "v1.34.4"
DEBIAN_SUITE = "bookworm"
KIND_NODE_IMAGE = f"kindest/node:{KUBERNETES}"

_K8S_VERSION_PACKAGE = "k8s.io/component-base/version"
_HELM_VERSION_PACKAGE = "helm.sh/helm/v3/internal/version"
_MAJOR, _MINOR = KUBERNETES.removeprefix("v").split(".")[:2]
_K8S_VARIABLES = {
    f"{_K8S_VERSION_PACKAGE}.gitVersion": KUBERNETES,
    f"{_K8S_VERSION_PACKAGE}.gitMajor": _MAJOR,
    f"{_K8S_VERSION_PACKAGE}.gitMinor": _MINOR,
    f"{_K8S_VERSION_PACKAGE}.gitTreeState": "clean",
}


@dataclass(frozen=True)
class GoTool:
    """A set of programs built from one Go module.

    folder: its go.mod below tests/cluster/go; programs: binary name → package path; minutes: how
    long a first build takes on 2 cores;
    variables: Go string variables set by the linker (a plain `go build` leaves versions empty).
    """

    name: str
    folder: str
    module: str
    version: str
    programs: dict[str, str]
    minutes: float
    variables: dict[str, str] = field(default_factory=dict)


KUBERNETES_TOOL = GoTool(
    name="kubernetes",
    folder="kubernetes",
    module="k8s.io/kubernetes",
    version=KUBERNETES,
    programs={
        "etcd": "go.etcd.io/etcd/server/v3",
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    },
    minutes=6,
    variables=_K8S_VARIABLES,
)

KUBECTL_TOOL = GoTool(
    name="kubectl",
    folder="kubernetes",
    module="k8s.io/kubernetes",
    version=KUBERNETES,
    programs={"kubectl": "k8s.io/kubernetes/cmd/kubectl"},
    minutes=1,
    variables=_K8S_VARIABLES,
)

_CNI = "github.com/containernetworking/plugins"
CNI_TOOL = GoTool(
    name="cni",
    folder="cni",
    module=_CNI,
    version="v1.9.1",
    programs={
        "bridge": f"{_CNI}/plugins/main/bridge",
        "loopback": f"{_CNI}/plugins/main/loopback",
        "host-local": f"{_CNI}/plugins/ipam/host-local",
        "portmap": f"{_CNI}/plugins/meta/portmap",
    },
    minutes=0.3,
)

COREDNS_TOOL = GoTool(
    name="coredns",
    folder="coredns",
    module="github.com/coredns/coredns",
    version="v1.14.7",
    programs={"coredns": "github.com/coredns/coredns"},
    minutes=3,
)

LOCAL_PATH_TOOL = GoTool(
    name="local-path",
    folder="local-path",
    module="github.com/rancher/local-path-provisioner",
    version="v0.0.30",
    programs={"local-path-provisioner": "github.com/rancher/local-path-provisioner"},
    minutes=1,
)

HELM_TOOL = GoTool(
    name="helm",
    folder="helm",
    module="helm.sh/helm/v3",
    version="v3.22.0",
    programs={"helm": "helm.sh/helm/v3/cmd/helm"},
    minutes=2,
    variables={
        f"{_HELM_VERSION_PACKAGE}.version": "v3.22.0",
        "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor": _MAJOR,
        "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor": _MINOR,
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor": _MAJOR,
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor": _MINOR,
    },
)

KWOK_TOOL = GoTool(
    name="kwok",
    folder="kwok",
    module="sigs.k8s.io/kwok",
    version="v0.8.0",
    programs={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
    minutes=2,
)

_KEDA = "github.com/kedacore/keda/v2"
KEDA_TOOL = GoTool(
    name="keda",
    folder="keda",
    module=_KEDA,
    version="v2.21.0",
    programs={"keda-operator": f"{_KEDA}/cmd/operator", "keda-adapter": f"{_KEDA}/cmd/adapter"},
    minutes=9,
    variables={f"{_KEDA}/version.Version": "2.21.0"},
)

NODE_TOOLS = GoTool(
    name="node-tools",
    folder="node-tools",
    module="",  # our own source, no dependency
    version="v1",
    programs={"node-tools": "."},
    minutes=0.2,
)

CLIENT_TOOLS = (KUBECTL_TOOL, HELM_TOOL)
NODE_SIDE_TOOLS = (KUBERNETES_TOOL, CNI_TOOL, COREDNS_TOOL, LOCAL_PATH_TOOL, NODE_TOOLS)
ALL_TOOLS = {tool.name: tool for tool in (*NODE_SIDE_TOOLS, *CLIENT_TOOLS, KWOK_TOOL, KEDA_TOOL)}
