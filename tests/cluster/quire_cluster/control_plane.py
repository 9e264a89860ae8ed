"""The command line of every program of the cluster. Pure: see netns.py for what starts them."""

from collections.abc import Iterable
from pathlib import Path

from quire_cluster import configs
from quire_cluster.build import Binaries
from quire_cluster.cgroups import GROUP
from quire_cluster.layout import Layout
from quire_cluster.network import (
    NODE_ADDRESS,
    NODE_NAME,
    POD_CIDR,
    REGISTRY,
    SERVICE_CIDR,
)
from quire_cluster.processes import ProcessSpec
from quire_cluster.versions import (
    CNI_TOOL,
    COREDNS_TOOL,
    KUBERNETES_TOOL,
    LOCAL_PATH_TOOL,
    NODE_TOOLS,
)

_ETCD_URL = "http://127.0.0.1:2379"
_FEATURE_GATES = "HPAScaleToZero=true"
_QPS = ("--kube-api-qps=300", "--kube-api-burst=400")  # the default of 20/s throttles scale tests


class Programs:
    """Builds the process specifications from the cluster's layout and its binaries."""

    def __init__(self, layout: Layout, binaries: Binaries) -> None:
        self._layout = layout
        self._binaries = binaries

    def config_files(self) -> dict[Path, str]:
        """Every configuration file with its text."""
        layout, folder = self._layout, self._layout.configs
        cni_bin = self._binaries.folder(CNI_TOOL)
        registry_folder = folder / "registries" / REGISTRY
        return {
            folder / "containerd.toml": configs.containerd(layout, cni_bin),
            folder / "registry.yaml": configs.registry(layout),
            registry_folder / "hosts.toml": configs.registry_hosts(),
            folder / "cni" / "10-quire.conflist": configs.cni(layout),
            folder / "kubelet.yaml": configs.kubelet(layout, f"/{GROUP}"),
            folder / "Corefile": configs.corefile(layout),
            folder / "resolv.conf": configs.resolv_conf(),
            folder / "audit-policy.yaml": configs.audit_policy(),
            folder / "storage" / "config.json": configs.storage_provisioner(layout),
            folder / "storage" / "helperPod.yaml": configs.storage_helper_pod(),
        }

    def stores(self) -> tuple[ProcessSpec, ...]:
        """What depends on nothing else: started first, together."""
        return (self.etcd(), self.api_server(), self.containerd(), self.registry())

    def agents(self) -> tuple[ProcessSpec, ...]:
        """What needs the API server."""
        return (
            self.controller_manager(),
            self.scheduler(),
            self.kubelet(),
            self.proxy(),
            self.coredns(),
            self.storage(),
        )

    def all(self) -> tuple[ProcessSpec, ...]:
        return (*self.stores(), *self.agents())

    def etcd(self) -> ProcessSpec:
        return self._kubernetes(
            "etcd",
            "etcd",
            f"--data-dir={self._layout.state}/etcd",
            f"--listen-client-urls={_ETCD_URL}",
            f"--advertise-client-urls={_ETCD_URL}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--auto-compaction-retention=30m",
            "--unsafe-no-fsync",  # a test bed's data need not survive the machine
        )

    def api_server(self) -> ProcessSpec:
        pki = self._layout.pki
        return self._kubernetes(
            "apiserver",
            "kube-apiserver",
            f"--etcd-servers={_ETCD_URL}",
            f"--advertise-address={NODE_ADDRESS}",
            f"--bind-address={NODE_ADDRESS}",
            "--secure-port=6443",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet.key",
            "--kubelet-preferred-address-types=InternalIP",  # else logs and exec fail
            "--allow-privileged",
            f"--feature-gates={_FEATURE_GATES}",
            *self._aggregation(),
            *self._audit(),
        )

    def controller_manager(self) -> ProcessSpec:
        pki = self._layout.pki
        return self._kubernetes(
            "controller-manager",
            "kube-controller-manager",
            self._kubeconfig("controller-manager"),
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials",
            "--allocate-node-cidrs",
            f"--cluster-cidr={POD_CIDR}",
            "--node-cidr-mask-size=25",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--leader-elect=false",
            f"--feature-gates={_FEATURE_GATES}",
            "--horizontal-pod-autoscaler-sync-period=3s",  # 15 s otherwise: tests wait for several
            *_QPS,
        )

    def scheduler(self) -> ProcessSpec:
        return self._kubernetes(
            "scheduler",
            "kube-scheduler",
            self._kubeconfig("scheduler"),
            "--leader-elect=false",
            *_QPS,
        )

    def kubelet(self) -> ProcessSpec:
        return self._kubernetes(
            "kubelet",
            "kubelet",
            f"--config={self._layout.configs}/kubelet.yaml",
            self._kubeconfig("kubelet"),
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_ADDRESS}",
            f"--root-dir={self._layout.kubelet}",
            "--v=2",
        )

    def proxy(self) -> ProcessSpec:
        return self._kubernetes(
            "proxy",
            "kube-proxy",
            self._kubeconfig("proxy"),
            f"--hostname-override={NODE_NAME}",
            f"--cluster-cidr={POD_CIDR}",
            "--proxy-mode=iptables",
            "--iptables-min-sync-period=100ms",  # 1 s otherwise, between Ready and reachable
            "--conntrack-max-per-core=0",
        )

    def containerd(self) -> ProcessSpec:
        return ProcessSpec(
            "containerd", ("containerd", "-c", f"{self._layout.configs}/containerd.toml")
        )

    def registry(self) -> ProcessSpec:
        return ProcessSpec(
            "registry", ("docker-registry", "serve", f"{self._layout.configs}/registry.yaml")
        )

    def coredns(self) -> ProcessSpec:
        program = self._binaries.program(COREDNS_TOOL, "coredns")
        return ProcessSpec("coredns", (str(program), "-conf", f"{self._layout.configs}/Corefile"))

    def storage(self) -> ProcessSpec:
        program = self._binaries.program(LOCAL_PATH_TOOL, "local-path-provisioner")
        folder = self._layout.configs / "storage"
        return ProcessSpec(
            "storage",
            (
                str(program),
                "start",
                f"--config={folder}/config.json",
                f"--helper-pod-file={folder}/helperPod.yaml",
                f"--helper-image={configs.NODE_IMAGE}",
                f"--provisioner-name={configs.STORAGE_PROVISIONER}",
                f"--namespace={configs.STORAGE_NAMESPACE}",
                f"--service-account-name={configs.STORAGE_NAMESPACE}",
                f"--kubeconfig={self._layout.kubeconfig_of('storage')}",
            ),
        )

    def node_program(self) -> Path:
        return self._binaries.program(NODE_TOOLS, "node-tools")

    def _aggregation(self) -> Iterable[str]:
        """The aggregation layer's flags: external metrics are served through it."""
        pki = self._layout.pki
        return (
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
            f"--proxy-client-key-file={pki}/front-proxy-client.key",
            "--enable-aggregator-routing",
        )

    def _audit(self) -> Iterable[str]:
        return (
            f"--audit-policy-file={self._layout.configs}/audit-policy.yaml",
            f"--audit-log-path={self._layout.audit_log}",
            "--audit-log-maxsize=200",
            "--audit-log-maxbackup=1",
        )

    def _kubernetes(self, name: str, program: str, *arguments: str) -> ProcessSpec:
        path = self._binaries.program(KUBERNETES_TOOL, program)
        return ProcessSpec(name, (str(path), *arguments))

    def _kubeconfig(self, user: str) -> str:
        return f"--kubeconfig={self._layout.kubeconfig_of(user)}"
