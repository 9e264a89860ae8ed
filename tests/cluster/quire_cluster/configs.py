"""The configuration files of the cluster's programs, rendered from a layout. Pure: no file is
touched. JSON stands where a program reads YAML, which contains it."""

import json
from pathlib import Path

from quire_cluster.layout import Layout
from quire_cluster.network import (
    CLUSTER_DOMAIN,
    NODE_ADDRESS,
    NODE_POD_CIDR,
    REGISTRY,
)

NODE_IMAGE = "quire.test/node-tools:v1"
DEFAULT_STORAGE_CLASS = "quire-local"
SMALL_STORAGE_CLASS = "quire-small"
STORAGE_NAMESPACE = "quire-storage"
STORAGE_PROVISIONER = "quire.test/local-path"
NUM_GPUS = 8


def _json(document: object) -> str:
    return json.dumps(document, indent=1) + "\n"


def containerd(layout: Layout, cni_bin: Path) -> str:
    """restrict_oom_score_adj: root in a container may lack CAP_SYS_RESOURCE, and pods would not
    start. netns_mounts_under_state_dir: pods' network namespaces go with the state's folder."""
    return f"""version = 2
root = "{layout.containerd}"
state = "{layout.run}/containerd"
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{NODE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  max_concurrent_downloads = 4
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{layout.configs}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{layout.configs}/registries"
"""


def registry_hosts() -> str:
    """Tells containerd that our registry speaks plain http."""
    return (
        f'server = "http://{REGISTRY}"\n[host."http://{REGISTRY}"]\n'
        '  capabilities = ["pull", "resolve"]\n'
    )


def registry(layout: Layout) -> str:
    return _json(
        {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(layout.registry)},
                "delete": {"enabled": True},
            },
            "http": {"addr": REGISTRY},
        }
    )


def cni(layout: Layout) -> str:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": NODE_POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": f"{layout.run}/ipam",
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return _json({"cniVersion": "1.0.0", "name": "quire", "plugins": [bridge, portmap]})


def kubelet(layout: Layout, cgroup_root: str) -> str:
    return _json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{layout.pki}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup_root,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": "/dev/null",
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": str(layout.pod_logs),
            "volumePluginDir": f"{layout.kubelet}/plugins-exec",
            "nodeStatusUpdateFrequency": "5s",
            "serializeImagePulls": False,
            "registryPullQPS": 0,
        }
    )


def corefile(layout: Layout) -> str:
    """Names outside the cluster do not exist: pods fail at once instead of after a time-out."""
    return f"""{CLUSTER_DOMAIN}:53 in-addr.arpa:53 {{
  bind {NODE_ADDRESS}
  errors
  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {layout.kubeconfig_of("coredns")} quire
    pods insecure
  }}
  cache 2
}}
.:53 {{
  bind {NODE_ADDRESS}
  health {NODE_ADDRESS}:8053
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


def resolv_conf() -> str:
    """For commands run beside the cluster, so that `status.url` can be called as it is written."""
    return f"nameserver {NODE_ADDRESS}\nsearch svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\n"


def audit_policy() -> str:
    """Who sent which request, for everybody but the cluster's own parts reading."""
    return _json(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {
                    "level": "None",
                    "verbs": ["get", "list", "watch"],
                    "userGroups": ["system:nodes", "system:masters"],
                },
                {
                    "level": "None",
                    "users": [
                        "system:apiserver",
                        "system:kube-controller-manager",
                        "system:kube-scheduler",
                        "system:kube-proxy",
                        "quire:coredns",
                    ],
                },
                {"level": "Metadata"},
            ],
        }
    )


def storage_provisioner(layout: Layout) -> str:
    """local-path-provisioner's own file; its helper pod runs our node-tools, not a shell."""
    return _json(
        {
            "nodePathMap": [
                {"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [str(layout.volumes)]}
            ],
            "setupCommand": "/node-tools",
            "teardownCommand": "/node-tools",
            "cmdTimeoutSeconds": 60,
        }
    )


def storage_helper_pod() -> str:
    return _json(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "helper-pod"},
            "spec": {
                "priorityClassName": "system-node-critical",
                "containers": [
                    {
                        "name": "helper-pod",
                        "image": NODE_IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "securityContext": {"runAsUser": 0},
                    }
                ],
            },
        }
    )
